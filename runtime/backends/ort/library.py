"""ONNX Runtime as it is wanted here: without telemetry, and silent, as what goes wrong arrives as an exception."""

import os
import re
from pathlib import Path
from typing import Any

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.optional import unavailable

NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"  # read once, when ONNX Runtime is loaded
QUIET = 4  # its severities: only what ends the process is printed
OPENS = {23: "1.23"}  # opset: the first ONNX Runtime that opens it
TOO_OLD = re.compile(r"Opset (\d+) is under development.*?till opset (\d+)", re.DOTALL)
IR_TOO_OLD = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")


def onnxruntime(where: str) -> Any:
    """The module; an `LdmrtError` where it is not installed, or does not work.

    Its own function stops only some events, after an identifier of the machine was written to the user's folder.
    """
    os.environ.setdefault(NO_TELEMETRY, "1")
    try:
        import onnxruntime as ort
    except (ImportError, OSError) as error:
        raise unavailable(error, where) from None
    ort.disable_telemetry_events()
    return ort


def session_options(ort: Any) -> Any:
    """Return the options of a silent session."""
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    return options


def refused(error: Exception, component: str, path: Path, ort: Any) -> LdmrtError:
    """Why ONNX Runtime cannot open a file, and what mends that: a newer ONNX Runtime, or another export."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        problem, hint = f"ONNX Runtime cannot open {str(path)!a}", "rename its folders, or set PYTHONUTF8=1"
        return LdmrtError(component, problem, expected="a path in UTF-8", hint=hint)
    for pattern, of in ((TOO_OLD, "opset"), (IR_TOO_OLD, "ONNX IR version")):
        if found := pattern.search(str(error)):
            needed, most = map(int, found.groups())
            package = "onnxruntime-gpu" if "CUDAExecutionProvider" in ort.get_available_providers() else "onnxruntime"
            least = OPENS.get(needed) if of == "opset" else None
            hint = f"pip install '{package}>={least}'" if least else f"pip install --upgrade {package}"
            problem = f"{path} is of {of} {needed}; this ONNX Runtime {ort.__version__} opens up to {most}"
            return LdmrtError(component, problem, hint=hint)
    return LdmrtError(component, f"cannot load {path}", found=first_line(error), hint="export the bundle again")
