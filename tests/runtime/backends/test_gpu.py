"""Which GPU is here, by a stand-in for the driver."""

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.backends.gpu import compute_capability, free_memory


def driver(codes: dict[str, int], capability: tuple[int, int] = (12, 0)) -> Any:
    """cuda.h's functions, which return 0 where all went well."""

    def attribute(value: Any, number: int, device: Any) -> int:
        value._obj.value = {75: capability[0], 76: capability[1]}[number]
        return 0

    def information(free: Any, total: Any) -> int:
        free._obj.value, total._obj.value = 3 << 30, 4 << 30
        return codes.get("cuMemGetInfo_v2", 0)

    return SimpleNamespace(
        cuDevicePrimaryCtxRetain=lambda context, handle: codes.get("cuDevicePrimaryCtxRetain", 0),
        cuDevicePrimaryCtxRelease_v2=lambda handle: 0,
        cuCtxPushCurrent_v2=lambda context: 0,
        cuCtxPopCurrent_v2=lambda context: 0,
        cuMemGetInfo_v2=information,
        cuInit=lambda flags: codes.get("cuInit", 0),
        cuDeviceGet=lambda handle, number: codes.get("cuDeviceGet", 0),
        cuDeviceGetAttribute=attribute,
    )


@pytest.mark.parametrize(("capability", "name"), [((8, 9), "sm89"), ((12, 0), "sm120"), ((7, 5), "sm75")])
def test_its_name(capability: tuple[int, int], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda library: driver({}, capability))
    assert compute_capability() == name


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGet"])
def test_a_driver_without_a_gpu(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda library: driver({call: 100}))
    with pytest.raises(LdmrtError, match="finds no GPU; found CUresult 100"):
        compute_capability()


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(library: str) -> Any:
        raise OSError(f"{library}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(LdmrtError, match="no NVIDIA driver here"):
        compute_capability()


def test_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda library: driver({}))
    assert free_memory() == 3 << 30


@pytest.mark.parametrize("call", ["cuInit", "cuDevicePrimaryCtxRetain", "cuMemGetInfo_v2"])
def test_free_memory_is_unknown_without_a_gpu(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda library: driver({call: 100}))
    assert free_memory() is None
