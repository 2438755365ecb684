"""ONNX Runtime as an engine."""

import contextlib
import warnings
from collections.abc import Collection, Mapping
from functools import cache, partial
from pathlib import Path
from threading import Lock, RLock
from typing import Any

from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError, LdmrtWarning, first_line
from ldmrt.runtime.tensors import Bound, Shapes, TensorSpec, bound_as, conform

from .binding import UNRECORDED, OrtBinding, run_options
from .graph_cache import DATA, keeping, kept
from .library import onnxruntime, refused, session_options

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}
BOUND = 8  # sets of shapes
# Bytes of weights. ONNX Runtime's convolutions of blocks of channels are faster where channels are few, but arranging
# weights for them is 10 of the 14 seconds that Stable Diffusion 1.5 takes to open; its images take as long without.
LARGE = 10**9
# CUDA records a graph only while no other thread asks it for memory, or copies: on a GPU all do so one by one.
TURN = RLock()
EXTERNAL = "session.optimized_model_external_initializers"
PROVIDERS = {"onnxruntime": "CPUExecutionProvider", "onnxruntime-cuda": "CUDAExecutionProvider"}


def available() -> tuple[str, ...]:
    """The backends of this ONNX Runtime."""
    ort = onnxruntime("backend")
    return tuple(name for name, provider in PROVIDERS.items() if provider in ort.get_available_providers())


def version() -> str:
    """Return the version of ONNX Runtime."""
    return str(onnxruntime("backend").__version__)


_ONCE = Lock()


@cache
def _share_arena(ort: Any) -> None:
    """One arena for all sessions of the process: what one network's activations took, the next one's can have."""
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    usual = {"max_mem": 0, "arena_extend_strategy": 0, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    ort.create_and_register_allocator(place, ort.OrtArenaCfg(usual))


class OrtEngine:
    """Runs one ONNX file in one ONNX Runtime session.

    `frugal` leaves the weights in their file, mapped, as the kernels then are those that take them as they are: opening
    takes no time, running a little more, and results differ by rounding. `optimized` is a folder where what ONNX
    Runtime makes of the graph is kept, or shall be: the same numbers, sooner. `records` has a GPU's bindings replay
    CUDA graphs, where all of the graph runs on the GPU.
    """

    def __init__(
        self, component: str, path: Path, backend: str = "onnxruntime", *, threads: int = 0, frugal: bool = False,
        spin: bool = True, optimized: Path | None = None, records: bool = False,
    ) -> None:  # fmt: skip
        """`threads` of the CPU; 0 leaves it to ONNX Runtime, which takes one a core. Where the next call follows at
        once, threads had better `spin` in between; else they would take the cores from another network for 0.1 s.
        """
        ort = onnxruntime(component)
        provider = PROVIDERS[backend]
        if provider not in ort.get_available_providers():
            raise LdmrtError(
                component,
                f"this ONNX Runtime has no {provider}",
                found=", ".join(ort.get_available_providers()),
                hint="pip install 'ldmrt[gpu]', or --backend onnxruntime",
            )
        options = session_options(ort)
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        options.enable_mem_pattern = False  # it reserves more than the activations ever take at once
        with _ONCE:
            _share_arena(ort)
        options.add_session_config_entry("session.use_env_allocators", "1")
        self._device = "cuda" if provider == PROVIDERS["onnxruntime-cuda"] else "cpu"
        if frugal or (self._device == "cpu" and _weights(path) > LARGE):
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        if frugal:
            options.add_session_config_entry("session.disable_prepacking", "1")
        self._records = records and self._device == "cuda"
        self._turn: contextlib.AbstractContextManager[object] = (
            TURN if self._device == "cuda" else contextlib.nullcontext()
        )
        open_session = self._open
        if optimized is not None:
            if (there := kept(optimized)) is not None:
                path, options.graph_optimization_level = there, ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            else:
                open_session = partial(self._open_and_keep, optimized)
        try:
            with self._turn:
                self._session: Any = open_session(ort, path, options, provider)
        except Exception as error:  # onnxruntime raises its own classes, none public
            raise refused(error, component, path, ort) from None
        self.component = component
        self._bindings: dict[Bound, OrtBinding] = {}
        self._binding = Lock()
        self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node) for node in self._session.get_outputs())
        self._names = [spec.name for spec in self.outputs]

    def _open_and_keep(self, optimized: Path, ort: Any, path: Path, options: Any, provider: str) -> Any:
        """The session; what ONNX Runtime makes of its graph is kept, where there is room for it."""
        try:
            with keeping(optimized) as file:
                if file is not None:
                    options.optimized_model_filepath = str(file)
                    options.add_session_config_entry(f"{EXTERNAL}_file_name", DATA)
                    options.add_session_config_entry(f"{EXTERNAL}_min_size_in_bytes", "1024")
                return self._open(ort, path, options, provider)
        except Exception as error:  # a full disk, in the words of ONNX Runtime or of the system
            fault = error
        options.optimized_model_filepath = ""
        session = self._open(ort, path, options, provider)  # where the graph itself is at fault, this one says so
        told = f"{optimized.parent}: nothing can be kept there: {first_line(fault)}"
        warnings.warn(told, LdmrtWarning, stacklevel=3)
        return session

    def _open(self, ort: Any, path: Path, options: Any, provider: str) -> Any:
        """The session, one that records where it can."""
        if self._records:
            try:
                return ort.InferenceSession(str(path), options, providers=[(provider, {"enable_cuda_graph": "1"})])
            except Exception as error:
                told = f"{path.name} is not recorded as a CUDA graph: {first_line(error)}"
                warnings.warn(told, LdmrtWarning, stacklevel=2)
                self._records = False
        return ort.InferenceSession(str(path), options, providers=[provider])

    def __call__(self, **arrays: NDArray) -> dict[str, NDArray]:
        """Run once; arrays are cast to the dtypes that the graph declares."""
        feeds, session = conform(self.component, self.inputs, arrays), self._session
        if session is None:
            raise LdmrtError(self.component, "its pipeline is closed", hint="open the bundle again")
        try:
            with self._turn:
                results = session.run(self._names, feeds, run_options(UNRECORDED) if self._records else None)
        except Exception as error:
            raise LdmrtError(self.component, "ONNX Runtime failed", found=first_line(error)) from None
        return dict(zip(self._names, results, strict=True))

    def bind(self, shapes: Shapes, feedback: Mapping[str, str], most: Collection[str] = ()) -> OrtBinding:
        """Make ready for calls whose inputs and outputs stay where the session computes, or come back to what was made
        ready. `feedback` names outputs that the next launch takes as inputs. It binds these very shapes, no more of
        what is named in `most`: any will do.

        A recorded graph keeps its buffers as long as the session: the first `BOUND` sets of shapes are.
        """
        missing = [spec.name for spec in self.inputs if spec.name not in shapes]
        if missing:
            raise LdmrtError(self.component, f"no input {missing[0]}", expected=", ".join(map(str, self.inputs)))
        with self._binding:
            return self._bound(shapes, feedback)

    def _bound(self, shapes: Shapes, feedback: Mapping[str, str]) -> OrtBinding:
        """The binding of these shapes, made when they are first asked for."""
        key = bound_as(shapes, feedback)
        if key in self._bindings:
            return self._bindings[key]
        many, keep = len(self._bindings), len(self._bindings) < BOUND
        graphs = (2 * many + 1, 2 * many + 2) if self._records and keep else (UNRECORDED, UNRECORDED)
        with self._turn:
            made = OrtBinding(
                self.component, self._session, self._device, self.inputs, self.outputs, shapes, feedback, graphs,
                self._turn,
            )  # fmt: skip
        if keep:
            self._bindings[key] = made
        return made

    def close(self) -> None:
        """Free the session."""
        self._bindings.clear()
        self._session = None


def _weights(path: Path) -> int:
    """Return how many bytes a graph's weights take, in its file or in one that graphs of a component share."""
    return sum(one.stat().st_size for one in path.parent.glob("*.onnx*") if one.is_file())


def _spec(node: Any) -> TensorSpec:
    return TensorSpec(node.name, DTYPES.get(node.type, node.type), tuple(node.shape))
