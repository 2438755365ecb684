"""What computes here: for what is measured and kept."""

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path

PACKAGES = ("ldmrt", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "torch", "onnx", "transformers")


def versions() -> dict[str, str]:
    """Of Python and of everything that has a hand in the figures, as far as it is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def processor() -> str:
    """The CPU's name, and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {os.cpu_count()} cores"
