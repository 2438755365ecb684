"""Which NVIDIA GPU is here, asked of its driver alone."""

import ctypes
import os

from .errors import LdmrtError

MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
HINT = "a machine with an NVIDIA GPU and its driver, or name the GPU: --target sm89"


def compute_capability(device: int = 0) -> str:
    """Such as "sm89". An `LdmrtError` where there is no GPU, or no driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        raise LdmrtError("gpu", "there is no NVIDIA driver here", hint=HINT) from None
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    calls = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(handle), device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, handle),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, handle),
    )
    for call in calls:
        if code := call():
            raise LdmrtError("gpu", "the NVIDIA driver finds no GPU", found=f"CUresult {code}", hint=HINT)
    return f"sm{major.value}{minor.value}"
