"""The devices that OpenVINO finds here, what they can do, and its options for them."""

from functools import cache
from threading import Lock

import numpy as np

from ldmrt.runtime.errors import LdmrtError

from .api import Core
from .library import openvino, reason

DEVICES = {"openvino": "CPU", "openvino-gpu": "GPU", "openvino-npu": "NPU"}  # by backend
ELEMENTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}  # OpenVINO's names of precisions
COMPUTES = (*ELEMENTS, "int8")
_MAKING = Lock()


def core() -> Core:
    """Return the process's one core: each would load the plugins of all devices anew.

    Raises:
        LdmrtError: OpenVINO is not installed, or does not work.
    """
    with _MAKING:
        return _core()


@cache
def _core() -> Core:
    library = openvino("backend")
    # Its first use of NumPy may not be in two threads: each would wait for a lock that the other has, for ever.
    library.Type.f32.to_dtype()
    library.Tensor(np.zeros(1, np.float32), shared_memory=True)
    try:
        made: Core = library.Core()
    except RuntimeError as error:
        raise _broken(error) from None
    return made


def device_of(backend: str, component: str) -> str:
    """Return the device that a backend runs on, such as "CPU".

    Args:
        backend: A key of `DEVICES`.
        component: The component that errors name.

    Raises:
        LdmrtError: OpenVINO is not installed or does not work, or it finds no such device here.
    """
    openvino(component)
    device = DEVICES[backend]
    if device == "CPU":  # which every package of OpenVINO runs on; naming all devices loads the libraries of each
        return device
    try:
        found = core().available_devices
    except RuntimeError as error:
        raise _broken(error) from None
    if not any(name.partition(".")[0] == device for name in found):  # "GPU.0" is one of several
        problem = f"OpenVINO finds no {device} here"
        raise LdmrtError(component, problem, found=", ".join(found) or "no device", hint="--backend openvino")
    return device


def precisions(device: str) -> tuple[str, ...]:
    """Name the precisions that a device computes in."""
    try:
        able = core().get_property(device, "OPTIMIZATION_CAPABILITIES")
    except RuntimeError as error:
        raise _broken(error) from None
    return tuple(name for name in COMPUTES if name.upper() in able)


def check_precision(component: str, device: str, compute: str) -> None:
    """Raise an `LdmrtError` where a device does not compute in a precision: OpenVINO would silently take another."""
    able = precisions(device)
    if compute not in able:
        problem = f"OpenVINO's {device} does not compute in {compute} on this machine"
        expected = ", ".join(f"--compute {name}" for name in able) or "none that ldmrt has"
        hint = f"--compute {able[0]}, or another machine" if able else "--backend openvino"
        raise LdmrtError(component, problem, expected=expected, hint=hint)


def available() -> tuple[str, ...]:
    """Return the backend of the CPU where OpenVINO works; Intel's GPUs and NPUs are used where they are named."""
    try:
        precisions(device_of("openvino", "backend"))
    except LdmrtError:
        return ()
    return ("openvino",)


def beside_int8(device: str) -> str:
    """Return the precision of what does not compute in int8 where the rest does: the narrowest that a device has."""
    able = precisions(device)
    return next(name for name in ("bf16", "fp16", "fp32") if name in able)


def options(device: str, compute: str, threads: int) -> dict[str, str]:
    """Return OpenVINO's options: one call at a time, on all cores, in one precision, or in int8 and another one."""
    element = ELEMENTS[beside_int8(device) if compute == "int8" else compute]
    chosen = {"INFERENCE_PRECISION_HINT": element, "PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU":
        chosen |= {"NUM_STREAMS": "1"} | ({"INFERENCE_NUM_THREADS": str(threads)} if threads else {})
    return chosen


def _broken(error: RuntimeError) -> LdmrtError:
    return LdmrtError("backend", "OpenVINO does not work here", found=reason(error), hint="--backend onnxruntime")
