"""The openvino package, imported without telemetry, and the devices that it finds."""

import sys
from functools import cache
from threading import Lock
from types import ModuleType

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.optional import unavailable

from .api import Core

CONVERTER = "openvino.tools.ovc"
DEVICES = {"openvino": "CPU", "openvino-gpu": "GPU", "openvino-npu": "NPU"}  # by backend
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
        hidden = CONVERTER not in sys.modules
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


@cache
def core() -> Core:
    """Return the process's one core: each would load the plugins of all devices anew."""
    made: Core = openvino("backend").Core()
    return made


def device_of(backend: str, component: str) -> str:
    """Return the device that a backend runs on, such as "CPU".

    Raises:
        LdmrtError: OpenVINO is not installed, or finds no such device here.
    """
    openvino(component)
    device = DEVICES[backend]
    found = core().available_devices
    if not any(name.partition(".")[0] == device for name in found):
        problem = f"OpenVINO finds no {device} here"
        raise LdmrtError(component, problem, found=", ".join(found) or "no device", hint="--backend openvino")
    return device


def version() -> str:
    """Return the version of OpenVINO, with its build."""
    return str(openvino("backend").get_version())


def available(compute: str = "fp32") -> tuple[str, ...]:
    """Name the backends of OpenVINO that compute in a precision here; none where it is not installed."""
    try:
        openvino("backend")
    except LdmrtError:
        return ()
    found = core().available_devices
    return tuple(
        backend
        for backend, device in DEVICES.items()
        if device in found and compute.upper() in core().get_property(device, "OPTIMIZATION_CAPABILITIES")
    )
