"""Runs a graph in OpenVINO, on a CPU, or on a GPU or NPU of Intel's."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldmrt.runtime.backends.kept_networks import keeping, kept
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning, first_line
from ldmrt.runtime.tensors import Array, Arrays, Specs, TensorSpec, conform, shape_of, sizes_of, split_symbol

from .api import CompiledModel, InferRequest, Model, Port, Tensor
from .devices import check_precision, core, device_of, options
from .library import openvino, reason

COMPILED = "model.blob"  # of a network that is kept as it was compiled


class _Network(NamedTuple):
    """A compiled network, and its file where it was imported: OpenVINO reads weights from there, mapped into memory."""

    model: CompiledModel
    blob: Array | None = None


class OpenVinoEngine:
    """Runs one ONNX file that OpenVINO has compiled. Several threads may call it at once."""

    def __init__(
        self,
        component: str,
        path: Path,
        backend: str = "openvino",
        *,
        compute: str = "fp32",
        threads: int = 0,
        specs: tuple[Specs, Specs] | None = None,
        compiled: Path | None = None,
    ) -> None:
        """Compile the graph.

        Args:
            component: The component that errors name.
            path: The ONNX file.
            backend: A key of `DEVICES`.
            compute: The precision to compute in: "fp32", or "bf16" and "fp16" where the device has it. OpenVINO itself
                would take the fastest.
            threads: Threads on the CPU; 0 leaves it to OpenVINO, which takes one for each core.
            specs: The inputs and outputs with their shapes in symbols, where they are known. With them, outputs are
                written where the caller gets them.
            compiled: A folder that the compiled network is read from, or else written to. The results are the same.

        Raises:
            LdmrtError: OpenVINO or the device is missing, it does not compute in this precision, or it cannot open
                the file.
        """
        device = device_of(backend, component)
        self._library = openvino(component)
        check_precision(component, device, compute)
        chosen, self._known = options(device, compute, threads), specs is not None
        try:
            network = self._imported(compiled, device, chosen) if compiled is not None and specs is not None else None
            if network is None:
                graph = self._read(path)
                network = _Network(core().compile_model(graph, device, chosen))
                # Those of the compiled model may have names of nodes that were removed.
                found = tuple(map(_spec, graph.inputs)), tuple(map(_spec, graph.outputs))
                specs = specs or found
                _check_names(component, path, specs, found)
                if compiled is not None:
                    _keep(network.model, compiled)
        except LdmrtError:
            raise
        except Exception as error:  # OpenVINO raises RuntimeError and classes of its own
            problem, hint = f"OpenVINO cannot open {path}", "export the bundle again, or --backend onnxruntime"
            raise LdmrtError(component, problem, found=reason(error), hint=hint) from None
        assert specs is not None
        self.component = component
        self._network: _Network | None = network
        self.inputs, self.outputs = specs

    def _read(self, path: Path) -> Model:
        """Read an ONNX file; only the frontend for ONNX, as the others print what they think of a damaged one."""
        frontend = self._library.frontend.FrontEndManager().load_by_framework("onnx")
        model: Model = frontend.convert(frontend.load(str(path)))
        return model

    def _imported(self, folder: Path, device: str, chosen: Mapping[str, str]) -> _Network | None:
        """Open the compiled network that a folder keeps; None where there is none, or none of this OpenVINO's."""
        file = kept(folder, COMPILED)
        if file is None:
            return None
        try:
            blob = np.memmap(file, np.uint8, "c")
            return _Network(core().import_model(self._shared(blob), device, chosen), blob)
        except (OSError, ValueError, RuntimeError):
            return None

    def __call__(self, **arrays: Array) -> Arrays:
        """Run once; arrays are cast to the dtypes that the graph declares."""
        feeds = {
            name: array if array.flags.writeable else array.copy()  # OpenVINO shares no read-only array
            for name, array in conform(self.component, self.inputs, arrays).items()
        }
        network = self._network  # which stays open until this call ends
        if network is None:
            raise LdmrtError(self.component, "its pipeline is closed", hint="open the bundle again")
        try:
            # A request of its own for each call, in microseconds: one that ran before would hold arrays of that call.
            return self._run(network.model.create_infer_request(), feeds, self._allocated(feeds))
        except LdmrtError:
            raise
        except Exception as error:
            raise LdmrtError(self.component, "OpenVINO failed", found=reason(error)) from None

    def _run(self, request: InferRequest, feeds: Arrays, outputs: Arrays) -> Arrays:
        """Run a request on arrays; return the outputs that were given, or else copies of OpenVINO's."""
        for index, array in enumerate(feeds.values()):
            request.set_input_tensor(index, self._shared(array))
        for index, array in enumerate(outputs.values()):
            request.set_output_tensor(index, self._shared(array))
        request.start_async()  # with one thread, `infer` of OpenVINO 2026.4 returns without an error where a node fails
        request.wait()
        results = {spec.name: request.get_output_tensor(index).data for index, spec in enumerate(self.outputs)}
        if not outputs:
            return {name: data.copy() for name, data in results.items()}
        for name, data in results.items():
            if data.shape != outputs[name].shape:
                expected = outputs[name].shape
                raise LdmrtError(self.component, f"wrong shape of {name}", expected=expected, found=data.shape)
        return outputs

    def _allocated(self, feeds: Mapping[str, Array]) -> Arrays:
        """Return empty arrays for the outputs; none where a shape is unknown or may be rounded."""
        sizes: dict[str, int] = {}
        for spec in self.inputs if self._known else ():
            # The first to have a size knows it best: half of an odd height may be rounded up.
            sizes = sizes_of(spec, feeds[spec.name].shape) | sizes
        symbols = [split_symbol(dim) for spec in self.outputs for dim in spec.shape if isinstance(dim, str)]
        if "batch" not in sizes or any(name not in sizes or sizes[name] % divisor for name, divisor in symbols):
            return {}
        return {spec.name: np.empty(shape_of(spec, sizes), spec.dtype) for spec in self.outputs}

    def _shared(self, array: Array) -> Tensor:
        """Return OpenVINO's view of an array, which must outlive it."""
        tensor: Tensor = self._library.Tensor(array, shared_memory=True)
        return tensor

    def close(self) -> None:
        """Free the network and its requests, once no call runs."""
        self._network = None


def _check_names(component: str, path: Path, expected: tuple[Specs, Specs], found: tuple[Specs, Specs]) -> None:
    """Raise an `LdmrtError` where a graph has other inputs and outputs than stated; OpenVINO opens empty files too."""
    names, others = ([spec.name for spec in (*inputs, *outputs)] for inputs, outputs in (expected, found))
    if names != others or not names:
        problem, hint = f"OpenVINO cannot open {path} as this network", "export the bundle again"
        raise LdmrtError(component, problem, expected=", ".join(names), found=", ".join(others) or "none", hint=hint)


def _keep(model: CompiledModel, folder: Path) -> None:
    """Keep a compiled network, where the disk has room for it."""
    try:
        with keeping(folder) as work:
            if work is not None:
                stream = io.BytesIO()
                model.export_model(stream)
                (work / COMPILED).write_bytes(stream.getbuffer())
    except (OSError, MemoryError, RuntimeError) as error:
        message = f"{folder.parent}: nothing can be kept there: {first_line(error)}"
        warnings.warn(message, LdmrtWarning, stacklevel=4)


def _spec(port: Port) -> TensorSpec:
    """Describe an input or output; dimensions that may change are named after it."""
    name = port.get_any_name()
    shape = tuple(
        f"{name}_{axis}" if dim.is_dynamic else dim.get_length() for axis, dim in enumerate(port.get_partial_shape())
    )
    return TensorSpec(name, np.dtype(port.get_element_type().to_dtype()).name, shape)  # type: ignore[call-overload]
