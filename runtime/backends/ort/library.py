"""The onnxruntime package, imported without telemetry and silent: every failure arrives as an exception."""

import os
import re
from functools import cache
from pathlib import Path
from types import ModuleType

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.optional import unavailable

from .api import SessionOptions

NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"  # read once, when ONNX Runtime is loaded
QUIET = 4  # the severity of errors that end the process; only those are printed
OPENS = {23: "1.23"}  # opset: the first ONNX Runtime that opens it
TOO_OLD = re.compile(r"Opset (\d+) is under development.*?till opset (\d+)", re.DOTALL)
IR_TOO_OLD = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")


def onnxruntime(where: str) -> ModuleType:
    """Import ONNX Runtime.

    Its own function stops only some telemetry events, after an identifier of the machine was written to the user's
    folder; so the environment variable is set first.

    Args:
        where: What an error concerns.

    Raises:
        LdmrtError: The package is not installed, or does not work.
    """
    os.environ.setdefault(NO_TELEMETRY, "1")
    try:
        import onnxruntime as ort
    except (ImportError, OSError) as error:
        raise unavailable(error, where) from None
    ort.disable_telemetry_events()
    module: ModuleType = ort
    return module


@cache
def load_cuda(ort: ModuleType) -> None:
    """Load the CUDA libraries of NVIDIA's packages, where they are installed, and silence ONNX Runtime's own log.

    cuDNN refuses some fused convolutions, for which ONNX Runtime logs an error and then takes another kernel.
    """
    ort.set_default_logger_severity(QUIET)
    vars(ort)["print"] = lambda *_: None  # what it does not find it prints; the provider then says so where it opens
    try:
        ort.preload_dlls()
    finally:
        del vars(ort)["print"]


def session_options(ort: ModuleType) -> SessionOptions:
    """Make the options of a silent session."""
    options: SessionOptions = ort.SessionOptions()
    options.log_severity_level = QUIET
    return options


def refused(error: Exception, component: str, path: Path, ort: ModuleType) -> LdmrtError:
    """Explain why ONNX Runtime cannot open a file: it needs a newer ONNX Runtime, or another export."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        problem, hint = f"ONNX Runtime cannot open {str(path)!a}", "rename its folders, or set PYTHONUTF8=1"
        return LdmrtError(component, problem, expected="a path in UTF-8", hint=hint)
    for pattern, kind in ((TOO_OLD, "opset"), (IR_TOO_OLD, "ONNX IR version")):
        if match := pattern.search(str(error)):
            needed, most = map(int, match.groups())
            package = "onnxruntime-gpu" if "CUDAExecutionProvider" in ort.get_available_providers() else "onnxruntime"
            least = OPENS.get(needed) if kind == "opset" else None
            hint = f"pip install '{package}>={least}'" if least else f"pip install --upgrade {package}"
            problem = f"{path} is of {kind} {needed}; this ONNX Runtime {ort.__version__} opens up to {most}"
            return LdmrtError(component, problem, hint=hint)
    return LdmrtError(component, f"cannot load {path}", found=first_line(error), hint="export the bundle again")
