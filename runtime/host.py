"""Describe this machine, for measurements and caches."""

import contextlib
import importlib.metadata
import os
import platform
from functools import cache
from pathlib import Path

PACKAGES = (
    "ldmrt",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "nncf",
    "tensorrt",
    "torch",
    "onnx",
    "transformers",
    "pillow",
    "av",
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of every installed package that has a hand in the figures."""
    found = {name: version for name in PACKAGES if (version := version_of(name)) is not None}
    return {"python": platform.python_version(), **found}


@cache
def version_of(package: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """Return the CPU's name, and the number of cores."""
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def features() -> str:
    """Return what the CPU can compute with, in its own words: which kernels run, and their layout of weights."""
    return _cpuinfo("flags", "Features") or f"{platform.machine()} {platform.processor()}"


def free_memory() -> int | None:
    """Return how many bytes of memory and swap can be had now; None where the system does not say it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    return found["MemAvailable"] + found.get("SwapFree", 0) if "MemAvailable" in found else None


def _cpuinfo(*names: str) -> str:
    """Return what Linux reports under the first of these names; empty where it reports nothing."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith(names))
    return ""


def megabytes(count: float) -> str:
    """Format millions of bytes, such as "1739 MB"."""
    return f"{count / 1e6:.0f} MB" if count >= 1e7 else f"{count / 1e6:.1f} MB"
