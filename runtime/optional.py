"""Packages that only some commands need, the extra that brings each, and what is said where one is missing."""

import importlib.util
import sys
from types import TracebackType
from typing import NamedTuple

from .errors import LdmrtError, first_line


class Package(NamedTuple):
    """An optional package: its name for people, and what pip has to install."""

    title: str
    install: str


def _extras(*names: str) -> str:
    return " or ".join(f"'ldmrt[{name}]'" for name in names)


# By the name that Python imports. Those that every installation has are here too: an installation may be damaged.
PACKAGES = {
    "click": Package("click", "click"),
    "numpy": Package("NumPy", "numpy"),
    "PIL": Package("Pillow", "pillow"),
    "rich": Package("rich", "rich"),
    "tokenizers": Package("tokenizers", "tokenizers"),
    "onnxruntime": Package("ONNX Runtime", _extras("cpu", "gpu")),
    "onnx": Package("onnx", _extras("export", "rtx", "tensorrt")),
    "onnx_ir": Package("onnx-ir", _extras("export")),
    "onnxscript": Package("onnxscript", _extras("export")),
    "torch": Package("PyTorch", _extras("export")),
    "transformers": Package("transformers", _extras("export")),
    "safetensors": Package("safetensors", _extras("export")),
    "huggingface_hub": Package("huggingface_hub", _extras("export")),
    "skimage": Package("scikit-image", _extras("export")),
    "polygraphy": Package("Polygraphy", _extras("rtx", "tensorrt")),
    "tensorrt": Package("TensorRT", _extras("tensorrt")),
    "tensorrt_rtx": Package("TensorRT-RTX", _extras("rtx")),
    "cuda": Package("cuda-bindings", _extras("rtx", "tensorrt")),
    "matplotlib": Package("matplotlib", _extras("plot")),
    "diffusers": Package("diffusers", _extras("dev")),
}


def unavailable(error: ImportError | OSError, where: str) -> LdmrtError:
    """What to say of an import that failed: the package is not installed, and which extra brings it; or it is there and
    does not work, and what it says itself.
    """
    wanted = _top(error.name) if isinstance(error, ImportError) else ""
    if wanted in PACKAGES and not _installed(wanted):
        title, install = PACKAGES[wanted]
        return LdmrtError(where, f"{title} is not installed", hint=f"pip install {install}")
    asked = _asked(error.__traceback__) or wanted or "a package"
    title, install = PACKAGES.get(asked, Package(asked, ""))
    hint = f"pip install --force-reinstall {install}" if install else None
    return LdmrtError(where, f"{title} is installed and cannot be imported", found=first_line(error), hint=hint)


def ours(error: ImportError) -> bool:
    """Whether the fault is in this package itself."""
    return _top(error.name) == "ldmrt"


def _top(name: str | None) -> str:
    return (name or "").partition(".")[0]


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # half imported
        return sys.modules.get(name) is not None


def _asked(trace: TracebackType | None) -> str:
    """The package that this one's code had asked for when the import failed; "" where none of its code ran."""
    asked, after = "", False
    while trace is not None:
        module = _top(str(trace.tb_frame.f_globals.get("__name__", "")))
        if module == "ldmrt":
            asked, after = "", True
        elif after and not asked and module not in ("importlib", "_frozen_importlib", "click"):
            asked = module
        trace = trace.tb_next
    return asked
