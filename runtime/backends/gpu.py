"""Asks the NVIDIA driver for the GPU's compute capability and its free memory, without any package."""

import ctypes
import os

from ldmrt.runtime.errors import LdmrtError

MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
HINT = "a machine with an NVIDIA GPU and its driver, or name the GPU: --target sm89"


def compute_capability(device: int = 0) -> str:
    """Return the GPU's compute capability, such as "sm89".

    Raises:
        LdmrtError: There is no GPU, or no driver.
    """
    driver, handle, major, minor = _driver(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    _check(driver.cuInit(0))
    _check(driver.cuDeviceGet(ctypes.byref(handle), device))
    _check(driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, handle))
    _check(driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, handle))
    return f"sm{major.value}{minor.value}"


def free_memory(device: int = 0) -> int | None:
    """Return the bytes of the GPU's memory that are free now; None where there is no GPU, or no driver."""
    handle, context, free, total = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    try:
        driver = _driver()
        _check(driver.cuInit(0))
        _check(driver.cuDeviceGet(ctypes.byref(handle), device))
        _check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle))  # the same context that engines use
        try:
            _check(driver.cuCtxPushCurrent_v2(context))
            _check(driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
            _check(driver.cuCtxPopCurrent_v2(ctypes.byref(context)))
        finally:
            driver.cuDevicePrimaryCtxRelease_v2(handle)
    except LdmrtError:
        return None
    return free.value


def _driver() -> ctypes.CDLL:
    """Load the NVIDIA driver."""
    try:
        return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        raise LdmrtError("gpu", "there is no NVIDIA driver here", hint=HINT) from None


def _check(code: int) -> None:
    """Raise an `LdmrtError` where a call of the driver has failed."""
    if code:
        raise LdmrtError("gpu", "the NVIDIA driver finds no GPU", found=f"CUresult {code}", hint=HINT)
