"""Runs a graph in ONNX Runtime, on a CPU or an NVIDIA GPU."""

import contextlib
import warnings
from collections.abc import Collection, Mapping
from functools import cache, partial
from pathlib import Path
from threading import Lock, RLock
from types import ModuleType

from ldmrt.runtime.backends.kept_networks import keeping, kept
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning, first_line
from ldmrt.runtime.tensors import Array, Arrays, Bound, Shapes, TensorSpec, bound_as, conform

from .api import Node, OrtValue, Session, SessionOptions
from .binding import UNRECORDED, OrtBinding, run_options
from .library import load_cuda, onnxruntime, refused, session_options

MODEL, DATA = "model.onnx", "model.onnx_data"  # of a graph that is kept as it was optimised
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}
BOUND = 8  # sets of shapes that keep their buffers
# Bytes of weights. ONNX Runtime's convolutions of blocks of channels are faster where channels are few, but arranging
# weights for them is 10 of the 14 seconds that Stable Diffusion 1.5 takes to open; its images take as long without.
LARGE = 10**9
# CUDA graph capture tolerates no allocation or copy by another thread, so GPU calls hold this lock.
TURN = RLock()
EXTERNAL = "session.optimized_model_external_initializers"
BESIDE = "session.model_external_initializers_file_folder_path"  # of a model that is given as bytes
# TensorFloat-32 would round float32 to 10 bits. With channels last, convolutions in half precision take tensor cores
# without moving anything. The default search for kernels, "EXHAUSTIVE", takes ones without tensor cores for the decoder
# of Stable Diffusion 1.5, which is then many times slower (ONNX Runtime 1.31 on an H200).
CUDA_OPTIONS = {"use_tf32": "0", "prefer_nhwc": "1", "cudnn_conv_algo_search": "HEURISTIC"}
PROVIDERS = {"onnxruntime": "CPUExecutionProvider", "onnxruntime-cuda": "CUDAExecutionProvider"}


def available() -> tuple[str, ...]:
    """Name the backends of this ONNX Runtime."""
    ort = onnxruntime("backend")
    return tuple(name for name, provider in PROVIDERS.items() if provider in ort.get_available_providers())


def version() -> str:
    """Return the version of ONNX Runtime."""
    return str(onnxruntime("backend").__version__)


_ONCE = Lock()


@cache
def _share_arena(ort: ModuleType) -> None:
    """Give all sessions of the process one arena, so that a network can reuse the memory of another's activations."""
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    usual = {"max_mem": 0, "arena_extend_strategy": 0, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    ort.create_and_register_allocator(place, ort.OrtArenaCfg(usual))


class OrtEngine:
    """Runs one ONNX file in one ONNX Runtime session."""

    def __init__(
        self,
        component: str,
        path: Path,
        backend: str = "onnxruntime",
        *,
        threads: int = 0,
        frugal: bool = False,
        spin: bool = True,
        optimized: Path | None = None,
        dims: Mapping[str, int] | None = None,
        inputs: bytes = b"",
    ) -> None:
        """Open the session.

        Args:
            component: The component that errors name.
            path: The ONNX file.
            backend: A key of `PROVIDERS`.
            threads: Threads on the CPU; 0 leaves it to ONNX Runtime, which takes one for each core.
            frugal: Leave the weights in their file, mapped into memory, where the system may drop them at any time.
                Opening takes no time, running a little more, and results differ by rounding: these kernels take
                weights as they are stored.
            spin: Keep threads busy between calls. Worth it where the next call follows at once; otherwise they take
                the cores from another network for 0.1 s.
            optimized: A folder that the optimised graph is read from, or else written to. The results are the same.
            dims: The size of every symbolic dimension, if the session is for these sizes alone. On a GPU, bindings
                then replay a CUDA graph.
            inputs: A model of inputs alone, which are constants of the graph: their weights can then be replaced.

        Raises:
            LdmrtError: ONNX Runtime or the backend's provider is missing, or the file cannot be loaded.
        """
        ort = onnxruntime(component)
        self.component, self._file = component, path.name
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
        options.enable_mem_pattern = False  # it would reserve more than the activations ever take at once
        self._device = "cuda" if provider == PROVIDERS["onnxruntime-cuda"] else "cpu"
        with _ONCE:
            _share_arena(ort)
            if self._device == "cuda":
                load_cuda(ort)
        options.add_session_config_entry("session.use_env_allocators", "1")
        if frugal or (self._device == "cpu" and _weights(path) > LARGE):
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        if frugal:
            options.add_session_config_entry("session.disable_prepacking", "1")
            # Weights that are cast at each call are then cast right before they are needed.
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        for name, size in (dims or {}).items():
            options.add_free_dimension_override_by_name(name, size)
        self._records = dims is not None and self._device == "cuda"
        self._turn: contextlib.AbstractContextManager[object] = (
            TURN if self._device == "cuda" else contextlib.nullcontext()
        )
        model: str | bytes = str(path)
        if inputs:
            options.add_session_config_entry(BESIDE, str(path.parent))
            model = path.read_bytes() + inputs  # protobuf merges messages that follow one another
        open_session = self._open
        if optimized is not None:
            if (file := kept(optimized, MODEL, DATA)) is not None:
                model, options.graph_optimization_level = str(file), ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            else:
                open_session = partial(self._open_and_keep, optimized)
        try:
            with self._turn:
                session = open_session(ort, model, options, provider)
        except Exception as error:  # onnxruntime raises its own classes, none public
            raise refused(error, component, path, ort) from None
        self._session: Session | None = session
        self._bindings: dict[Bound, OrtBinding] = {}
        self._binding = Lock()
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        self._names = [spec.name for spec in self.outputs]

    def _open_and_keep(
        self, optimized: Path, ort: ModuleType, model: str | bytes, options: SessionOptions, provider: str
    ) -> Session:
        """Open the session and keep its optimised graph, where the disk has room for it."""
        try:
            with keeping(optimized) as folder:
                if folder is not None:
                    options.optimized_model_filepath = str(folder / MODEL)
                    options.add_session_config_entry(f"{EXTERNAL}_file_name", DATA)
                    options.add_session_config_entry(f"{EXTERNAL}_min_size_in_bytes", "1024")
                return self._open(ort, model, options, provider)
        except Exception as error:  # of a full disk, raised by ONNX Runtime or by the system
            fault = error
        options.optimized_model_filepath = ""
        session = self._open(ort, model, options, provider)  # it raises where the graph itself is at fault
        message = f"{optimized.parent}: nothing can be kept there: {first_line(fault)}"
        warnings.warn(message, LdmrtWarning, stacklevel=3)
        return session

    def _open(self, ort: ModuleType, model: str | bytes, options: SessionOptions, provider: str) -> Session:
        """Open the session, with CUDA graphs where they are wanted and the graph allows it."""
        session: Session
        settings = CUDA_OPTIONS if self._device == "cuda" else {}
        if self._records:
            recording = {**settings, "enable_cuda_graph": "1"}
            try:
                session = ort.InferenceSession(model, options, providers=[(provider, recording)])
                return session
            except Exception as error:
                message = f"{self._file} is not recorded as a CUDA graph: {first_line(error)}"
                warnings.warn(message, LdmrtWarning, stacklevel=2)
                self._records = False
        session = ort.InferenceSession(model, options, providers=[(provider, settings)])
        return session

    def __call__(self, **arrays: Array) -> Arrays:
        """Run once; arrays are cast to the dtypes that the graph declares."""
        feeds, session = conform(self.component, self.inputs, arrays), self._opened()
        try:
            with self._turn:
                results = session.run(self._names, feeds, run_options(UNRECORDED) if self._records else None)
        except Exception as error:
            raise LdmrtError(self.component, "ONNX Runtime failed", found=first_line(error)) from None
        return dict(zip(self._names, results, strict=True))

    def given(self, weights: Mapping[str, Array]) -> "GivenWeights":
        """Return this network with other weights, by the names of constants that are inputs; they are bound once."""
        ort = onnxruntime(self.component)
        with self._turn:
            values = {name: ort.OrtValue.ortvalue_from_numpy(array, self._device) for name, array in weights.items()}
        return GivenWeights(self, values)

    def run_with(self, weights: Mapping[str, OrtValue], arrays: Arrays) -> Arrays:
        """Run once with other weights, which are where the session computes."""
        ort, session = onnxruntime(self.component), self._opened()
        feeds = conform(self.component, self.inputs, arrays)
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
        try:
            with self._turn:
                results = session.run_with_ort_values(self._names, {**weights, **values})
                return {name: result.numpy() for name, result in zip(self._names, results, strict=True)}
        except Exception as error:
            raise LdmrtError(self.component, "ONNX Runtime failed", found=first_line(error)) from None

    def bind(self, shapes: Shapes, feedback: Mapping[str, str], most: Collection[str] = ()) -> OrtBinding:
        """Return a binding for input shapes, an earlier one where there is one.

        The first `BOUND` sets of shapes keep their buffers, and their recorded graphs, as long as the session.

        Args:
            shapes: The shapes of all inputs.
            feedback: Outputs that the next launch takes as inputs.
            most: Dimensions that may be larger than in `shapes`; ONNX Runtime gains nothing by it and binds `shapes`.
        """
        missing = [spec.name for spec in self.inputs if spec.name not in shapes]
        if missing:
            raise LdmrtError(self.component, f"no input {missing[0]}", expected=", ".join(map(str, self.inputs)))
        with self._binding:
            return self._bound(shapes, feedback)

    def _bound(self, shapes: Shapes, feedback: Mapping[str, str]) -> OrtBinding:
        """Return the binding of these shapes, made at the first call with them."""
        key = bound_as(shapes, feedback)
        if key in self._bindings:
            return self._bindings[key]
        number, keep = len(self._bindings), len(self._bindings) < BOUND
        graphs = (2 * number + 1, 2 * number + 2) if self._records and keep else (UNRECORDED, UNRECORDED)
        session, device = self._opened(), self._device
        with self._turn:
            binding = OrtBinding(
                self.component, session, device, self.inputs, self.outputs, shapes, feedback, graphs, self._turn
            )
        if keep:
            self._bindings[key] = binding
        return binding

    def _opened(self) -> Session:
        if self._session is None:
            raise LdmrtError(self.component, "its pipeline is closed", hint="open the bundle again")
        return self._session

    def close(self) -> None:
        """Free the session."""
        self._bindings.clear()
        self._session = None


class GivenWeights:
    """Runs a network with other weights, in the session that it has."""

    def __init__(self, engine: OrtEngine, weights: Mapping[str, OrtValue]) -> None:
        """Hold the weights, by the names of constants that are inputs of the network's graph."""
        self._engine, self._weights = engine, weights
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def __call__(self, **arrays: Array) -> Arrays:
        """Run once; see `OrtEngine`."""
        return self._engine.run_with(self._weights, arrays)

    def close(self) -> None:
        """Forget the weights; the session stays."""
        self._weights = {}


def _weights(path: Path) -> int:
    """Return the bytes of all ONNX files beside a graph, its own too: an upper bound of its weights."""
    return sum(file.stat().st_size for file in path.parent.glob("*.onnx*") if file.is_file())


def _spec(node: Node) -> TensorSpec:
    return TensorSpec(node.name, DTYPES.get(node.type, node.type), tuple(node.shape))
