"""The openvino package, imported without telemetry."""

import sys
from threading import Lock
from types import ModuleType

from ldmrt.runtime.errors import first_line
from ldmrt.runtime.optional import unavailable
from ldmrt.runtime.tensors import Array

from .api import Tensor

CONVERTER = "openvino.tools.ovc"
# How the lines of OpenVINO's errors begin that say where one was raised.
WHERE = ("Exception from", "Check '", "FrontEnd API failed", "Model wasn't fully converted")
_IMPORTING = Lock()


def openvino(where: str) -> ModuleType:
    """Import OpenVINO without its converter, which would report each import to its makers and double the time.

    Code that wants `openvino.convert_model` in the same process imports OpenVINO before this does.

    Args:
        where: What an error concerns.

    Raises:
        LdmrtError: The package is not installed, or does not work.
    """
    with _IMPORTING:
        hidden = "openvino" not in sys.modules and CONVERTER not in sys.modules
        if hidden:
            sys.modules[CONVERTER] = None  # type: ignore[assignment]  # OpenVINO then goes on without it
        try:
            import openvino
        except (ImportError, OSError) as error:
            raise unavailable(error, where) from None
        finally:
            if hidden:
                del sys.modules[CONVERTER]
    module: ModuleType = openvino
    return module


def version() -> str:
    """Return the version of OpenVINO, with its build."""
    return str(openvino("backend").get_version())


def shared(array: Array) -> Tensor:
    """Return OpenVINO's view of an array, which must outlive it."""
    tensor: Tensor = openvino("backend").Tensor(array, shared_memory=True)
    return tensor


def reason(error: Exception) -> str:
    """Return the line of an error of OpenVINO's that says what is wrong, without those that say where it was raised."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(WHERE)]
    return lines[0] if lines else first_line(error)
