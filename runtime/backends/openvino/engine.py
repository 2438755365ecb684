"""Runs a graph in OpenVINO, on a CPU, or on a GPU or NPU of Intel's."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ldmrt.runtime.backends.by_sizes import BySizes, sizes_in
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tensors import Array, Arrays, Specs, conform, shape_of, sizes_of, split_symbol

from .api import InferRequest
from .devices import check_precision, device_of, options
from .library import reason, shared
from .network import Graph, Network
from .ranges import Range

# How often in a row sizes are called until a network of their own is worth compiling: it takes as long as FIXED_AFTER
# calls of the shipped model's U-Net save by it. So the worst order of sizes costs at most as much again.
FIXED_AFTER = 150
# Bytes of weights, for a second network. Of larger ones a single network is open: that for the sizes of the first call,
# until others come.
FIXED_MOST = 250 * 10**6


class OpenVinoEngine:
    """Runs one ONNX file that OpenVINO has compiled. Several threads may call it at once."""

    def __init__(
        self,
        component: str,
        path: Path,
        backend: str = "openvino",
        *,
        compute: str = "fp32",
        in_float32: Callable[[str], bool] | None = None,
        ranges: Mapping[str, Range] | None = None,
        threads: int = 0,
        specs: tuple[Specs, Specs] | None = None,
        compiled: Path | None = None,
        fixed_after: int | None = None,
        fixed_first: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Compile the graph.

        Args:
            component: The component that errors name.
            path: The ONNX file.
            backend: A key of `DEVICES`.
            compute: The precision to compute in: "fp32", or "bf16", "fp16" and "int8" where the device has it. OpenVINO
                itself would take the fastest.
            in_float32: Tells of a module's path whether it computes in float32 in any case, as far as OpenVINO allows;
                no module does by default.
            ranges: With "int8", the modules that compute in it, by their paths, with the range of what each takes. The
                others compute in the narrowest other precision of the device.
            threads: Threads on the CPU; 0 leaves it to OpenVINO, which takes one for each core.
            specs: The inputs and outputs with their shapes in symbols, where they are known. With them, outputs are
                written where the caller gets them.
            compiled: A folder that the compiled network is read from, or else written to. The results are the same.
            fixed_after: Sizes that are called this often in a row get a network that is compiled for them alone. It
                needs `specs`.
            fixed_first: The network is compiled at the first call, for its sizes alone. Where others come, one for any
                sizes takes its place, so that one is open at a time.
            check: Called before and after the file is read, to raise where it is not the right one any more.

        Raises:
            LdmrtError: OpenVINO or the device is missing, it does not compute in this precision, or it cannot open
                the file.
        """
        device = device_of(backend, component)
        check_precision(component, device, compute)
        self.component, self._sized = component, specs is not None
        graph = Graph(
            component,
            path,
            device,
            options(device, compute, threads),
            compute,
            in_float32,
            ranges,
            specs,
            compiled,
            check,
        )
        later = fixed_first and specs is not None
        self._networks = BySizes(
            component,
            graph.open,
            after=fixed_after if self._sized and not later else None,
            at_first=later,
            most=1 if later else None,
        )
        if not later:
            network = graph.first()
            self._networks.add(network.sizes, network)
        assert graph.specs is not None
        self.inputs, self.outputs = graph.specs

    def __call__(self, **arrays: Array) -> Arrays:
        """Run once; arrays are cast to the dtypes that the graph declares."""
        feeds = {
            name: array if array.flags.writeable else array.copy()  # OpenVINO shares no read-only array
            for name, array in conform(self.component, self.inputs, arrays).items()
        }
        sizes = sizes_in(self.inputs, {name: array.shape for name, array in feeds.items()})
        network: Network = self._networks.of(sizes)  # which stays open until this call ends
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
            request.set_input_tensor(index, shared(array))
        for index, array in enumerate(outputs.values()):
            request.set_output_tensor(index, shared(array))
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
        for spec in self.inputs if self._sized else ():
            # The first to have a size knows it best: half of an odd height may be rounded up.
            sizes = sizes_of(spec, feeds[spec.name].shape) | sizes
        symbols = [split_symbol(dim) for spec in self.outputs for dim in spec.shape if isinstance(dim, str)]
        if "batch" not in sizes or any(name not in sizes or sizes[name] % divisor for name, divisor in symbols):
            return {}
        return {spec.name: np.empty(shape_of(spec, sizes), spec.dtype) for spec in self.outputs}

    def close(self) -> None:
        """Free the networks and their requests, once no call runs."""
        self._networks.close()
