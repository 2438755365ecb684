"""Opens graphs in ONNX Runtime whose weights can be replaced."""

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.graphs import TOGETHER

from .engine import PROVIDERS, OrtEngine


def open_replaceable(bundle: Bundle, backend: str, threads: int, name: str, inputs: bytes) -> OrtEngine:
    """Open a graph with some of its constants as inputs.

    Args:
        bundle: The opened bundle.
        backend: The backend that the pipeline was opened with.
        threads: Of the CPU; 0 is one a core.
        name: The graph.
        inputs: A model of these inputs alone.
    """
    spin = bundle.home(name).startswith(TOGETHER)
    own = backend if backend in PROVIDERS else "onnxruntime"
    path = bundle.models(name)[-1] if own == "onnxruntime-cuda" else bundle.model(name)
    return OrtEngine(name, path, own, threads=threads, spin=spin, inputs=inputs)
