"""Opens graphs in ONNX Runtime whose weights can be replaced, and says which backends have none."""

from ldmrt.runtime.backends.auto import sessions
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.graphs import TOGETHER
from ldmrt.runtime.errors import LdmrtError

from .engine import PROVIDERS, OrtEngine

MERGE = "ldmrt export CHECKPOINT BUNDLE --lora FILE:WEIGHT"
REASONS = {
    "tensorrt": "TensorRT takes other weights from another bundle",
    "tensorrt-rtx": "TensorRT-RTX compiles an engine with its weights, and replaces none",
    "openvino": "OpenVINO compiles a network with its weights, and replaces none",
}
HINTS = {"tensorrt": f"{MERGE}, then ldmrt engines refit BUNDLE --from THIS_BUNDLE; or --backend onnxruntime"}


def check_replaceable(bundle: Bundle, backend: str, *, low_memory: bool) -> None:
    """Refuse to replace weights where a backend cannot.

    Raises:
        LdmrtError: States the reason, and the way that there is.
    """
    if low_memory:
        problem = "low_memory leaves weights in their file, where none is replaced"
        raise LdmrtError("lora", problem, hint=f"without --low-memory, or {MERGE}")
    if narrow := [name for name in bundle.components if bundle.precision(name) == "bf16"]:
        problem, hint = "weights in bfloat16 cannot be replaced at run time", f"{MERGE} --precision bf16"
        raise LdmrtError("lora", problem, expected="fp32 or fp16", found=", ".join(narrow), hint=hint)
    name = backend
    if backend == "auto" and (built := sessions(bundle)):
        name = built[0].backend
    kind = name if name.startswith("tensorrt") else name.partition("-")[0]
    if name not in PROVIDERS and name != "auto":
        hint = HINTS.get(kind, f"--backend onnxruntime, or {MERGE}")
        raise LdmrtError("lora", f"{REASONS[kind]} at run time", expected="onnxruntime", found=name, hint=hint)


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
