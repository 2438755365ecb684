"""A network's file that is replaced after a bundle was opened is not run."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import ldmrt.runtime
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.bundle.manifest import MANIFEST


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def replace(file: Path, content: bytes, how: str) -> None:
    """Write other bytes: in place, or as a new file that takes the name."""
    if how == "in place":
        file.write_bytes(content)
    else:
        other = file.with_name("other")
        other.write_bytes(content)
        os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
        other.replace(file)


@pytest.mark.parametrize("how", ["in place", "renamed"])
@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
@pytest.mark.parametrize("settings", [{}, {"check": False}, {"fused": True}], ids=str)
def test_a_replaced_file_is_noticed(copy: Path, component: str, how: str, settings: dict[str, Any]) -> None:
    pipeline = ldmrt.runtime.open(copy, "onnxruntime", **settings)
    for file in (copy / component).glob("*.onnx*"):
        content = file.read_bytes()
        replace(file, content[:-1] + bytes([content[-1] ^ 1]), how)
    with pytest.raises(LdmrtError, match=f"{component}.* was replaced after the bundle was opened"):
        pipeline("a cat", num_inference_steps=1)
    pipeline.close()


def test_the_same_bytes_written_anew_are_the_same(copy: Path) -> None:
    pipeline = ldmrt.runtime.open(copy, "onnxruntime", low_memory=True)
    expected = pipeline("a cat", num_inference_steps=1).pixels
    for file in copy.glob("*/*.onnx*"):
        replace(file, file.read_bytes(), "renamed")
    assert (pipeline("a cat", num_inference_steps=1).pixels == expected).all()
    (copy / "unet" / "model.onnx").unlink()
    with pytest.raises(LdmrtError, match=r"unet/model\.onnx was replaced"):  # opened once more for each request
        pipeline("a cat", num_inference_steps=1)
    pipeline.close()


def test_also_without_a_manifest(copy: Path) -> None:
    (copy / MANIFEST).unlink()
    pipeline = ldmrt.runtime.open(copy, "onnxruntime", low_memory=True)
    pipeline("a cat", num_inference_steps=1)
    file = copy / "unet" / "model.onnx"
    replace(file, file.read_bytes(), "renamed")
    with pytest.raises(LdmrtError, match=r"unet/model\.onnx was replaced"):
        pipeline("a cat", num_inference_steps=1)
    pipeline.close()
