"""ONNX Runtime as an engine."""

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .errors import LdmrtError, first_line
from .specs import TensorSpec, conform

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}
INSTALL = "pip install 'ldmrt[cpu]' or 'ldmrt[gpu]'"
PROVIDERS = {"onnxruntime": "CPUExecutionProvider", "onnxruntime-cuda": "CUDAExecutionProvider"}


def available() -> tuple[str, ...]:
    """The backends of this ONNX Runtime."""
    try:
        import onnxruntime as ort
    except ImportError:
        raise LdmrtError("backend", "ONNX Runtime is not installed", hint=INSTALL) from None
    return tuple(name for name, provider in PROVIDERS.items() if provider in ort.get_available_providers())


class OrtEngine:
    """One ONNX file in one ONNX Runtime session. `frugal`: activations are not laid out in one block of memory before
    a run, which takes more than they ever do at once.
    """

    def __init__(self, component: str, path: Path, backend: str = "onnxruntime", *, frugal: bool = False) -> None:
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
        options.enable_mem_pattern = not frugal
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:  # onnxruntime raises its own classes, none public
            raise LdmrtError(
                component, f"cannot load {path}", found=first_line(error), hint="export the bundle again"
            ) from None
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

    def close(self) -> None:
        """Free the session."""
        self._session = None


def _spec(node: Any) -> TensorSpec:
    return TensorSpec(node.name, DTYPES.get(node.type, node.type), tuple(node.shape))
