"""Name packages that only some commands need, the extra that brings each, and the error where one is missing."""

import importlib.util
import sys
from types import TracebackType
from typing import NamedTuple

from .errors import LdmrtError, first_line


class Package(NamedTuple):
    """An optional package: its name for people, what pip calls it, and the extras of ldmrt that bring it."""

    title: str
    distribution: str
    extras: tuple[str, ...] = ()

    @property
    def install(self) -> str:
        """Return the command that installs it."""
        return "pip install " + (" or ".join(f"'ldmrt[{extra}]'" for extra in self.extras) or self.distribution)


# By the name that Python imports. Those that every installation has are here too: an installation may be damaged.
PACKAGES = {
    "click": Package("click", "click"),
    "numpy": Package("NumPy", "numpy"),
    "PIL": Package("Pillow", "pillow"),
    "rich": Package("rich", "rich"),
    "tokenizers": Package("tokenizers", "tokenizers"),
    "onnxruntime": Package("ONNX Runtime", "onnxruntime", ("cpu", "gpu")),
    "openvino": Package("OpenVINO", "openvino", ("openvino",)),
    "nncf": Package("NNCF", "nncf", ("int8",)),
    "onnx": Package("onnx", "onnx", ("export", "rtx", "tensorrt")),
    "onnx_ir": Package("onnx-ir", "onnx-ir", ("export",)),
    "onnxscript": Package("onnxscript", "onnxscript", ("export",)),
    "torch": Package("PyTorch", "torch", ("export",)),
    "transformers": Package("transformers", "transformers", ("export",)),
    "safetensors": Package("safetensors", "safetensors", ("export",)),
    "huggingface_hub": Package("huggingface_hub", "huggingface_hub", ("export",)),
    "skimage": Package("scikit-image", "scikit-image", ("export",)),
    "polygraphy": Package("Polygraphy", "polygraphy", ("rtx", "tensorrt")),
    "tensorrt": Package("TensorRT", "tensorrt", ("tensorrt",)),
    "tensorrt_rtx": Package("TensorRT-RTX", "tensorrt-rtx-cu13", ("rtx",)),
    "cuda.bindings": Package("cuda-bindings", "cuda-bindings", ("rtx", "tensorrt")),
    "tomli": Package("tomli", "tomli", ("export",)),
    "accelerate": Package("accelerate", "accelerate", ("train",)),
    "psutil": Package("psutil", "psutil", ("train",)),
    "resvg_py": Package("resvg-py", "resvg-py", ("train",)),
    "matplotlib": Package("matplotlib", "matplotlib", ("plot",)),
    "datasets": Package("Hugging Face datasets", "datasets", ("datasets",)),
    "fastapi": Package("FastAPI", "fastapi", ("serve",)),
    "starlette": Package("Starlette", "starlette", ("serve",)),
    "pydantic": Package("Pydantic", "pydantic", ("serve",)),
    "uvicorn": Package("Uvicorn", "uvicorn", ("serve",)),
    "python_multipart": Package("python-multipart", "python-multipart", ("serve",)),
    "prometheus_client": Package("prometheus_client", "prometheus-client", ("serve",)),
    "ray": Package("Ray", "ray", ("ray",)),
    "pyarrow": Package("PyArrow", "pyarrow", ("ray",)),
    "tensorboard": Package("TensorBoard", "tensorboard", ("tensorboard",)),
    "wandb": Package("Weights & Biases", "wandb", ("wandb",)),
    "bitsandbytes": Package("bitsandbytes", "bitsandbytes", ("bitsandbytes",)),
    "opentelemetry": Package("OpenTelemetry", "opentelemetry-sdk", ("otel",)),
    "av": Package("PyAV", "av", ("video",)),
    "diffusers": Package("diffusers", "diffusers", ("families",)),
    "jinja2": Package("Jinja", "jinja2", ("families",)),
    "spandrel": Package("spandrel", "spandrel", ("upscale",)),
}


def unavailable(error: ImportError | OSError, where: str) -> LdmrtError:
    """Explain an import that failed.

    The package is not installed, and the hint names the extra that brings it; or it is installed and does not work,
    and the error quotes its message.
    """
    wanted = _package_of(error.name) if isinstance(error, ImportError) else ""
    there = is_installed(wanted)
    if wanted in PACKAGES and not there:
        return _missing(wanted, where)
    at_fault = wanted if there else _package_of(_asked(error.__traceback__)) or wanted
    package = PACKAGES.get(at_fault, Package(at_fault or "a package", at_fault or "PACKAGE"))
    hint = f"pip install --force-reinstall {package.distribution}"
    problem = f"{package.title} is installed and does not work"
    return LdmrtError(where, problem, found=first_line(error), hint=hint)


def check_installed(where: str, *names: str) -> None:
    """Raise an `LdmrtError` where one of these packages is missing, before work is done that would be lost."""
    for name in names:
        if not is_installed(name):
            raise _missing(name, where)


def _missing(name: str, where: str) -> LdmrtError:
    return LdmrtError(where, f"{PACKAGES[name].title} is not installed", hint=PACKAGES[name].install)


def ours(error: ImportError) -> bool:
    """Tell whether the fault is in this package itself."""
    return _top(error.name) == "ldmrt"


def _package_of(name: str | None) -> str:
    """Return the package that a module is of, by its key where it has one: several share the name `cuda`."""
    for key in PACKAGES if name else ():
        if name == key or str(name).startswith(f"{key}.") or key.startswith(f"{name}."):
            return key
    return _top(name)


def _top(name: str | None) -> str:
    return (name or "").partition(".")[0]


def is_installed(name: str) -> bool:
    """Tell whether a package is there, by the name that Python imports, without importing it."""
    try:
        return bool(name) and importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of what is around it
        return False
    except ValueError:  # half imported
        return sys.modules.get(name) is not None


def _asked(trace: TracebackType | None) -> str:
    """Return the package that this one's code had asked for when the import failed; "" where none of its code ran."""
    asked, after = "", False
    while trace is not None:
        module = _top(str(trace.tb_frame.f_globals.get("__name__", "")))
        if module == "ldmrt":
            asked, after = "", True
        elif after and not asked and module not in ("importlib", "_frozen_importlib", "click"):
            asked = module
        trace = trace.tb_next
    return asked
