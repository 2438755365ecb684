"""ONNX Runtime as an engine."""

import contextlib
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import LdmrtError, first_line
from .optimized import DATA, keeping, kept
from .specs import Shapes, TensorSpec, conform

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}
INSTALL = "pip install 'ldmrt[cpu]' or 'ldmrt[gpu]'"
EXTERNAL = "session.optimized_model_external_initializers"
PROVIDERS = {"onnxruntime": "CPUExecutionProvider", "onnxruntime-cuda": "CUDAExecutionProvider"}


def available() -> tuple[str, ...]:
    """The backends of this ONNX Runtime."""
    try:
        import onnxruntime as ort
    except ImportError:
        raise LdmrtError("backend", "ONNX Runtime is not installed", hint=INSTALL) from None
    return tuple(name for name, provider in PROVIDERS.items() if provider in ort.get_available_providers())


def version() -> str:
    """Of ONNX Runtime; "" where it is not installed."""
    try:
        import onnxruntime as ort
    except ImportError:
        return ""
    return str(ort.__version__)


@cache
def _share_arena(ort: Any) -> None:
    """One arena for all sessions of the process: what one network's activations took, the next one's can have."""
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    usual = {"max_mem": 0, "arena_extend_strategy": 0, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    ort.create_and_register_allocator(place, ort.OrtArenaCfg(usual))


class OrtEngine:
    """One ONNX file in one ONNX Runtime session.

    `frugal` leaves the weights in their file, mapped, as the kernels then are those that take them as they are: opening
    takes no time, running a tenth more, and results differ by rounding. `optimized` is a folder where what ONNX Runtime
    makes of the graph is kept, or shall be: the same numbers, sooner.
    """

    def __init__(
        self, component: str, path: Path, backend: str = "onnxruntime", *, threads: int = 0, frugal: bool = False,
        spin: bool = True, optimized: Path | None = None,
    ) -> None:  # fmt: skip
        """`threads` of the CPU; 0 leaves it to ONNX Runtime, which takes one a core. Where the next call follows at
        once, threads had better `spin` in between; else they would take the cores from another network for 0.1 s.
        """
        try:
            import onnxruntime as ort
        except ImportError:
            raise LdmrtError(component, "ONNX Runtime is not installed", hint=INSTALL) from None
        provider = PROVIDERS[backend]
        if provider not in ort.get_available_providers():
            raise LdmrtError(
                component,
                f"this ONNX Runtime has no {provider}",
                found=", ".join(ort.get_available_providers()),
                hint="pip install 'ldmrt[gpu]', or --backend onnxruntime",
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors; they also arrive as exceptions
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        options.enable_mem_pattern = False  # it reserves more than the activations ever take at once
        _share_arena(ort)
        options.add_session_config_entry("session.use_env_allocators", "1")
        if frugal:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.add_session_config_entry("session.disable_prepacking", "1")
        with contextlib.ExitStack() as writing:
            if optimized is not None:
                if (there := kept(optimized)) is not None:
                    path, options.graph_optimization_level = there, ort.GraphOptimizationLevel.ORT_DISABLE_ALL
                elif (file := writing.enter_context(keeping(optimized))) is not None:
                    options.optimized_model_filepath = str(file)
                    options.add_session_config_entry(f"{EXTERNAL}_file_name", DATA)
                    options.add_session_config_entry(f"{EXTERNAL}_min_size_in_bytes", "1024")
            try:
                self._session: Any = ort.InferenceSession(str(path), options, providers=[provider])
            except Exception as error:  # onnxruntime raises its own classes, none public
                raise LdmrtError(
                    component, f"cannot load {path}", found=first_line(error), hint="export the bundle again"
                ) from None
        self._device = "cuda" if provider == PROVIDERS["onnxruntime-cuda"] else "cpu"
        self.component = component
        self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node) for node in self._session.get_outputs())
        self._names = [spec.name for spec in self.outputs]

    def __call__(self, **arrays: NDArray) -> dict[str, NDArray]:
        """Run once; arrays are cast to the dtypes that the graph declares."""
        feeds = conform(self.component, self.inputs, arrays)
        try:
            results = self._session.run(self._names, feeds)
        except Exception as error:
            raise LdmrtError(self.component, "ONNX Runtime failed", found=first_line(error)) from None
        return dict(zip(self._names, results, strict=True))

    def bind(self, shapes: Shapes, feedback: Mapping[str, str], most: Collection[str] = ()) -> "OrtBinding":
        """Make ready for calls whose inputs and outputs stay where the session computes. `feedback` names outputs that
        the next launch takes as inputs. It binds these very shapes, no more of what is named in `most`: any will do.
        """
        missing = [spec.name for spec in self.inputs if spec.name not in shapes]
        if missing:
            raise LdmrtError(self.component, f"no input {missing[0]}", expected=", ".join(map(str, self.inputs)))
        return OrtBinding(self.component, self._session, self._device, self.inputs, self._names, shapes, feedback)

    def close(self) -> None:
        """Free the session."""
        self._session = None


class OrtBinding:
    """Upload, launch as often as you like, download: what lies on the device stays there in between."""

    def __init__(
        self, component: str, session: Any, device: str, inputs: tuple[TensorSpec, ...], outputs: list[str],
        shapes: Shapes, feedback: Mapping[str, str],
    ) -> None:  # fmt: skip
        self.shapes = shapes
        self.owner: object = None
        self._component, self._session, self._device = component, session, device
        self._dtypes = {spec.name: spec.dtype for spec in inputs}
        self._outputs, self._feedback = outputs, feedback
        self._values: dict[str, Any] = {}
        self._spare: dict[str, Any] = {}  # for an output that is fed back: where the input before it lay

    def upload(self, **arrays: NDArray) -> None:
        """Inputs. Those that are left out stay as they are."""
        import onnxruntime as ort

        for name, array in arrays.items():
            ready = np.ascontiguousarray(array, self._dtypes[name])
            # A copy also on the CPU, where ONNX Runtime would compute in the caller's array.
            self._values[name] = ort.OrtValue.ortvalue_from_numpy(ready.copy(), self._device)
        for output, target in self._feedback.items():
            if target in arrays:
                like = np.empty(arrays[target].shape, self._dtypes[target])
                self._spare[output] = ort.OrtValue.ortvalue_from_numpy(like, self._device)

    def launch(self) -> None:
        """Run once."""
        binding = self._session.io_binding()
        for name in self._dtypes:
            binding.bind_ortvalue_input(name, self._values[name])
        for name in self._outputs:
            if name in self._spare:
                binding.bind_ortvalue_output(name, self._spare[name])
            else:
                binding.bind_output(name, self._device)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise LdmrtError(self._component, "ONNX Runtime failed", found=first_line(error)) from None
        # Those that were bound as they are, for they own their memory; what is got back only refers to it.
        made = {**dict(zip(self._outputs, binding.get_outputs(), strict=True)), **self._spare}
        self._values |= made
        for output, target in self._feedback.items():
            self._spare[output], self._values[target] = self._values[target], made[output]

    def download(self, *names: str) -> dict[str, NDArray]:
        """Outputs, all where none is named, as arrays of their own."""
        return {name: self._values[name].numpy().copy() for name in names or self._outputs}


def _spec(node: Any) -> TensorSpec:
    return TensorSpec(node.name, DTYPES.get(node.type, node.type), tuple(node.shape))
