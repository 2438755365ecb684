"""Runs a graph in OpenVINO, on a CPU, or on a GPU or NPU of Intel's."""

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np

from ldmrt.runtime.backends.kept_networks import keeping, kept
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning, first_line
from ldmrt.runtime.tensors import Array, Arrays, Specs, TensorSpec, conform, shape_of, sizes_of

from .api import CompiledModel, InferRequest, Model, Port, Tensor
from .library import core, device_of, openvino

COMPILED = "model.blob"  # of a network that is kept as it was compiled
# How the lines of OpenVINO's errors begin that say where one was raised.
WHERE = ("Exception from", "Check '", "FrontEnd API failed", "Model wasn't fully converted")
ELEMENTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}  # OpenVINO's names of precisions


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
        chosen, known = options(device, compute, threads), specs is not None
        self._blob: Array | None = None  # the file that an imported network reads its weights from, mapped into memory
        try:
            model = self._imported(compiled, device, chosen) if compiled is not None and specs is not None else None
            if model is None:
                graph = self._read(path)
                model = core().compile_model(graph, device, chosen)
                # Those of the compiled model may have names of nodes that were removed.
                found = tuple(map(_spec, graph.inputs)), tuple(map(_spec, graph.outputs))
                specs = specs or found
                _check_names(component, path, specs, found)
                if compiled is not None:
                    _keep(model, compiled)
        except LdmrtError:
            raise
        except Exception as error:  # OpenVINO raises RuntimeError and classes of its own
            problem, hint = f"OpenVINO cannot open {path}", "export the bundle again, or --backend onnxruntime"
            raise LdmrtError(component, problem, found=reason(error), hint=hint) from None
        assert specs is not None
        self.component, self._known = component, known
        self._model: CompiledModel | None = model
        self._idle: SimpleQueue[InferRequest] = SimpleQueue()
        self.inputs, self.outputs = specs

    def _read(self, path: Path) -> Model:
        """Read an ONNX file; only the frontend for ONNX, as the others print what they think of a damaged one."""
        frontend = self._library.frontend.FrontEndManager().load_by_framework("onnx")
        model: Model = frontend.convert(frontend.load(str(path)))
        return model

    def _imported(self, folder: Path, device: str, chosen: Mapping[str, str]) -> CompiledModel | None:
        """Open the compiled network that a folder keeps; None where there is none, or none of this OpenVINO's."""
        file = kept(folder, COMPILED)
        if file is None:
            return None
        blob = np.memmap(file, np.uint8, "c")
        try:
            model = core().import_model(self._shared(blob), device, chosen)
        except RuntimeError:
            return None
        self._blob = blob
        return model

    def __call__(self, **arrays: Array) -> Arrays:
        """Run once; arrays are cast to the dtypes that the graph declares."""
        feeds = {
            name: array if array.flags.writeable else array.copy()  # OpenVINO shares no read-only array
            for name, array in conform(self.component, self.inputs, arrays).items()
        }
        with self._request() as request:
            try:
                for index, array in enumerate(feeds.values()):
                    request.set_input_tensor(index, self._shared(array))
                outputs = self._allocated(feeds) if self._known else {}
                for index, array in enumerate(outputs.values()):
                    request.set_output_tensor(index, self._shared(array))
                request.infer()
            except Exception as error:
                raise LdmrtError(self.component, "OpenVINO failed", found=reason(error)) from None
            if not self._known:
                outputs = {
                    spec.name: request.get_output_tensor(index).data.copy() for index, spec in enumerate(self.outputs)
                }
        return outputs

    def _allocated(self, feeds: Mapping[str, Array]) -> Arrays:
        """Return empty arrays for the outputs."""
        sizes = {name: n for spec in self.inputs for name, n in sizes_of(spec, feeds[spec.name].shape).items()}
        return {spec.name: np.empty(shape_of(spec, sizes), spec.dtype) for spec in self.outputs}

    def _shared(self, array: Array) -> Tensor:
        """Return OpenVINO's view of an array, which must outlive it."""
        tensor: Tensor = self._library.Tensor(array, shared_memory=True)
        return tensor

    @contextmanager
    def _request(self) -> Iterator[InferRequest]:
        """Yield a request that no other thread uses meanwhile; a new one where all are in use."""
        if self._model is None:
            raise LdmrtError(self.component, "its pipeline is closed", hint="open the bundle again")
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._model.create_infer_request()
        try:
            yield request
        finally:
            self._idle.put(request)

    def close(self) -> None:
        """Free the network and its requests."""
        self._model, self._idle, self._blob = None, SimpleQueue(), None


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
    except (OSError, RuntimeError) as error:
        message = f"{folder.parent}: nothing can be kept there: {first_line(error)}"
        warnings.warn(message, LdmrtWarning, stacklevel=4)


def check_precision(component: str, device: str, compute: str) -> None:
    """Raise an `LdmrtError` where a device does not compute in a precision: OpenVINO would silently take another."""
    has = {name.lower() for name in core().get_property(device, "OPTIMIZATION_CAPABILITIES")}
    if compute not in has:
        able = ", ".join(f"--compute {name}" for name in ELEMENTS if name in has)
        problem = f"OpenVINO's {device} does not compute in {compute} on this machine"
        raise LdmrtError(component, problem, expected=able, hint=f"{able.partition(', ')[0]}, or another machine")


def options(device: str, compute: str, threads: int) -> dict[str, str]:
    """Return OpenVINO's options: one call at a time, on all cores, in one precision."""
    chosen = {"INFERENCE_PRECISION_HINT": ELEMENTS[compute], "PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU":
        chosen |= {"NUM_STREAMS": "1"} | ({"INFERENCE_NUM_THREADS": str(threads)} if threads else {})
    return chosen


def reason(error: Exception) -> str:
    """Return the line of an error of OpenVINO's that says what is wrong, without those that say where it was raised."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(WHERE)]
    return lines[0] if lines else first_line(error)


def _spec(port: Port) -> TensorSpec:
    """Describe an input or output; dimensions that may change are named after it."""
    name = port.get_any_name()
    shape = tuple(
        f"{name}_{axis}" if dim.is_dynamic else dim.get_length() for axis, dim in enumerate(port.get_partial_shape())
    )
    return TensorSpec(name, np.dtype(port.get_element_type().to_dtype()).name, shape)  # type: ignore[call-overload]
