"""ONNX Runtime: too old, broken, and silent."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import ldmrt.runtime
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.backends.ort.library import onnxruntime, refused

# As ONNX Runtime 1.22.1 says it of a file of opset 23, and 1.23.0 of one of a later format.
OPSET = (
    "[ONNXRuntimeError] : 1 : FAIL : Load model from unet/model.onnx failed:/onnxruntime_src/onnxruntime/core/graph/"
    "model_load_utils.h:46 void onnxruntime::model_load_utils::ValidateOpsetForDomain(...) ONNX Runtime only"
    " *guarantees* support for models stamped with official released onnx opset versions. Opset {} is under development"
    " and support for this is limited. The operator schemas and or other functionality may change before next ONNX"
    " release and in this case ONNX Runtime will not guarantee backward compatibility. Current official support for"
    " domain ai.onnx is"
    " till opset {}."
)
FORMAT = (
    "[ONNXRuntimeError] : 1 : FAIL : Load model from model.onnx failed:/onnxruntime_src/onnxruntime/core/graph/model.cc"
    ":181 Unsupported model IR version: 14, max supported IR version: 11"
)


@pytest.mark.parametrize(
    ("said", "providers", "problem", "hint"),
    [
        (OPSET.format(23, 22), "CPU", "is of opset 23; this ONNX Runtime 1.22.1 opens up to 22", "'onnxruntime>=1.23'"),
        (OPSET.format(23, 21), "CUDA", "is of opset 23; this ONNX Runtime 1.22.1 opens up to 21",
         "'onnxruntime-gpu>=1.23'"),
        (OPSET.format(30, 29), "CPU", "is of opset 30; this ONNX Runtime 1.22.1 opens up to 29",
         "--upgrade onnxruntime"),
        (FORMAT, "CPU", "is of ONNX IR version 14; this ONNX Runtime 1.22.1 opens up to 11", "--upgrade onnxruntime"),
    ],
)  # fmt: skip
def test_one_that_is_too_old_is_told_from_a_bad_file(said: str, providers: str, problem: str, hint: str) -> None:
    ort = SimpleNamespace(__version__="1.22.1", get_available_providers=lambda: [f"{providers}ExecutionProvider"])
    error = refused(RuntimeError(said), "unet", Path("unet/model.onnx"), ort)
    assert str(error) == f"unet: unet/model.onnx {problem}\n  try: pip install {hint}"


def test_it_prints_nothing_of_its_own(bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What it says arrives once, in our error."""
    encoder = OrtEngine("text_encoder", bundle / "text_encoder" / "model.onnx")
    with pytest.raises(LdmrtError, match="text_encoder: ONNX Runtime failed"):
        encoder(input_ids=np.full((1, 16), 10**6))  # no such token
    copy = Path(shutil.copytree(bundle / "unet", tmp_path / "unet"))
    (copy / "model.onnx").write_bytes((bundle / "unet" / "model.onnx").read_bytes()[:-1000])
    with pytest.raises(LdmrtError, match="unet: cannot load"):
        OrtEngine("unet", copy / "model.onnx")
    assert capfd.readouterr() == ("", "")


def test_telemetry_is_off(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ort, calls = onnxruntime("test"), list[str]()
    monkeypatch.setattr(ort, "disable_telemetry_events", lambda: calls.append("off"))
    ldmrt.runtime.open(bundle, "onnxruntime", check=False).engines["unet"].close()
    assert calls


def test_telemetry_leaves_nothing_in_the_users_folder(bundle: Path, tmp_path: Path) -> None:
    """Where it is on, ONNX Runtime 1.32 writes an identifier of the machine there, and says so where it cannot."""
    home = tmp_path / "home"
    home.mkdir()
    code = f"""
import ldmrt.runtime
with ldmrt.runtime.open({str(bundle)!r}, "onnxruntime", check=False) as pipeline:
    pipeline("a red apple", num_inference_steps=1)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "HOME": str(home)}, capture_output=True, text=True, check=True
    )
    assert (ran.stdout, ran.stderr) == ("", "")
    assert list(home.rglob("*")) == []
