"""OpenVINO's devices and precisions: asked for by name, refused where they are not here, and imported in silence."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ldmrt.runtime import Bundle, LdmrtError
from ldmrt.runtime.backends.openvino import devices
from ldmrt.runtime.backends.openvino.devices import device_of, options, precisions
from ldmrt.runtime.backends.registry import BackendSettings, available_backends, open_engines


def test_float32_is_asked_for_by_name() -> None:
    """OpenVINO itself takes bfloat16 where a CPU has it."""
    assert options("CPU", "fp32", 3) == {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": "3",
    }
    assert options("GPU", "fp16", 0) == {"INFERENCE_PRECISION_HINT": "f16", "PERFORMANCE_HINT": "LATENCY"}


class NoBrainFloat:
    """A core whose CPU is an old one."""

    available_devices = ("CPU",)

    def get_property(self, device: str, name: str) -> list[str]:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return ["FP32", "INT8", "BIN", "EXPORT_IMPORT"]


@pytest.mark.parametrize(
    ("backend", "how", "message"),
    [
        ("openvino", {"compute": "bf16"}, r"unet: OpenVINO's CPU does not compute in bf16 on this machine; expected "
         r"--compute fp32, --compute int8\n  try: --compute fp32, or another machine"),
        ("openvino-gpu", {}, r"unet: OpenVINO finds no GPU here; found CPU\n  try: --backend openvino"),
        ("openvino-npu", {"compute": "fp16"}, "unet: OpenVINO finds no NPU here"),
        ("openvino", {"compute": "fp8"}, "compute: no precision 'fp8'; expected fp32, fp16, bf16, int8"),
        ("openvino", {"compute": "int8"}, r"int8: \S+ holds no ranges of activations for int8\n  try: ldmrt verify \S+ "
         "--against CHECKPOINT --compute int8 --store"),
        ("onnxruntime", {"compute": "int8"}, r"found int8\n  try: --backend openvino$"),
        ("openvino", {"compute": "bf61"}, "did you mean 'bf16'"),
        ("auto", {"compute": "bf16"}, "compute: auto computes in the precision of the bundle; expected openvino"),
        ("onnxruntime", {"compute": "fp16"}, "onnxruntime computes in the precision of the bundle"),
        ("openvino", {"fused": True}, "open: openvino runs no fused step\n  try: leave fused out"),
        ("ov", {}, "no backend 'ov', did you mean 'openvino'?"),
    ],
)  # fmt: skip
def test_refused(
    bundle: Path, backend: str, how: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "core", NoBrainFloat)
    with pytest.raises(LdmrtError, match=message):
        open_engines(Bundle.open(bundle), backend, BackendSettings(**how))["unet"]


class Several:
    """A core of a machine with two GPUs of Intel's and an NPU."""

    available_devices = ("CPU", "GPU.0", "GPU.1", "NPU")

    def get_property(self, device: str, name: str) -> list[str]:
        return {"CPU": ["FP32", "BF16"], "GPU": ["FP32", "FP16"], "NPU": ["FP16", "INT8"]}[device]


def test_devices_are_used_by_name(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "core", Several)
    assert [device_of(f"openvino{name}", "unet") for name in ("", "-gpu", "-npu")] == ["CPU", "GPU", "NPU"]
    assert [precisions(device) for device in ("CPU", "GPU", "NPU")] == [
        ("fp32", "bf16"),
        ("fp32", "fp16"),
        ("fp16", "int8"),
    ]
    assert available_backends(Bundle.open(bundle)) == ("onnxruntime", "openvino")
    with pytest.raises(
        LdmrtError,
        match=r"NPU does not compute in fp32 .*; expected --compute fp16, --compute int8\n  try: --compute fp16",
    ):
        open_engines(Bundle.open(bundle), "openvino-npu")["unet"]


def test_a_driver_that_is_broken(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others go on without it."""

    def broken() -> Any:
        raise RuntimeError("Exception from core.cpp:1\nno such plugin\n")

    monkeypatch.setattr("openvino.Core", broken)
    devices._core.cache_clear()
    assert available_backends(Bundle.open(bundle)) == ("onnxruntime",)
    with pytest.raises(
        LdmrtError, match=r"OpenVINO does not work here; found no such plugin\n  try: --backend onnxruntime"
    ):
        open_engines(Bundle.open(bundle), "openvino")["unet"]


def test_its_first_use_of_numpy_is_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that are the first would wait for each other, for ever; all begin with the core."""
    used: list[str] = []

    class Library:
        """Notes what is used of OpenVINO, slowly."""

        class Type:
            class f32:
                @staticmethod
                def to_dtype() -> None:
                    time.sleep(0.05)
                    used.append("Type")

        @staticmethod
        def Tensor(array: object, *, shared_memory: bool) -> None:
            used.append("Tensor")

        @staticmethod
        def Core() -> str:
            used.append("Core")
            return "a core"

    devices._core.cache_clear()
    monkeypatch.setattr(devices, "openvino", lambda _: Library)
    try:
        threads = [threading.Thread(target=devices.core) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert used == ["Type", "Tensor", "Core"]
    finally:
        devices._core.cache_clear()


def test_the_libraries_of_other_devices_are_not_loaded(bundle: Path) -> None:
    """Those of GPUs and NPUs cost a CPU's first image time."""
    code = f"""
import ldmrt.runtime
with ldmrt.runtime.open({str(bundle)!r}, "openvino", check=False) as pipeline:
    pipeline("a red apple", num_inference_steps=1)
print(*sorted({{name for name in ("cpu", "gpu", "npu") if f"intel_{{name}}_plugin" in open("/proc/self/maps").read()}}))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "cpu"


def test_it_is_measured_where_it_is_installed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Bundle.open(bundle)
    assert available_backends(opened) == ("onnxruntime", "openvino")
    monkeypatch.setattr(devices, "core", NoBrainFloat)
    assert available_backends(opened, "bf16") == ("openvino",)  # which then says why it cannot
    monkeypatch.setitem(sys.modules, "openvino", None)  # type: ignore[arg-type]
    assert available_backends(opened) == ("onnxruntime",)
    with pytest.raises(LdmrtError, match=r"unet: OpenVINO is not installed\n  try: pip install 'ldmrt\[openvino\]'"):
        open_engines(opened, "openvino")["unet"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # type: ignore[arg-type]
    with pytest.raises(LdmrtError, match="ONNX Runtime is not installed"):
        available_backends(opened)


def test_its_converter_and_its_telemetry_are_not_imported(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    code = f"""
import sys
import ldmrt.runtime
with ldmrt.runtime.open({str(bundle)!r}, "openvino", check=False) as pipeline:
    pipeline("a red apple", num_inference_steps=1)
print(*sorted({{"openvino_telemetry", "openvino.tools.ovc", "torch", "onnxruntime"}} & sys.modules.keys()))
import openvino.tools.ovc  # others still have it
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    environment["HOME"] = str(tmp_path / "home")
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (ran.stdout.strip(), ran.stderr) == ("", "")
