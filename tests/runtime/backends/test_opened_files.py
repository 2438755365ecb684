"""The files of a bundle that a backend opens: its own graphs, and none that was replaced after the opening."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ldmrt.runtime
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.backends.kept_networks import FOLDER
from ldmrt.runtime.bundle.graphs import CUDA
from ldmrt.runtime.bundle.manifest import MANIFEST
from ldmrt.runtime.errors import BundleError

from ...support.fakes.cuda_provider import Recorder

ASKED: dict[str, Any] = {"prompt": "a red apple", "num_inference_steps": 2, "seed": 3}
ROUNDING = 1e-5  # of the largest latent: float32 sums in another order, over all rows


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


def draw(path: Path, backend: str = "onnxruntime-cuda", **options: Any) -> Any:
    pipeline = ldmrt.runtime.open(path, backend, **options)
    latents = pipeline(**ASKED).latents
    pipeline.close()
    return latents


def unlist(path: Path) -> None:
    """Take the graphs for CUDA out of the manifest; the files stay."""
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if not name.endswith(CUDA)}
    (path / MANIFEST).write_text(json.dumps(manifest))


def remove(path: Path) -> None:
    """Leave a bundle as it was exported before there were graphs for CUDA."""
    unlist(path)
    for file in path.glob(f"*/*{CUDA}"):
        file.unlink()


def leave_networks(path: Path) -> None:
    """Leave a folder as optimum exports it, without a manifest and without graphs beside the networks."""
    remove(path)
    for file in (path / MANIFEST, path / "unet" / "step.onnx"):
        file.unlink()


def test_each_backend_opens_its_own_graphs(bundle: Path, recorder: Recorder) -> None:
    draw(bundle)
    assert sorted(recorder.files) == ["model.cuda.onnx", "model.cuda.onnx", "step.cuda.onnx"]  # words, image, rows
    recorder.files.clear()
    draw(bundle, fused=False)
    assert recorder.files == ["model.cuda.onnx"] * 3


@pytest.mark.parametrize("change", [unlist, remove, leave_networks])
def test_a_bundle_without_graphs_for_cuda_opens(copy: Path, bundle: Path, recorder: Recorder, change: Any) -> None:
    change(copy)
    expected, found = draw(bundle), draw(copy)
    assert np.abs(found - expected).max() <= ROUNDING * np.abs(expected).max()
    rows = "model.onnx" if change is leave_networks else "step.onnx"
    assert sorted(recorder.files[3:]) == ["model.onnx", "model.onnx", rows]


@pytest.mark.parametrize("change", ["other bytes", "removed"])
@pytest.mark.parametrize("name", ["text_encoder/model", "unet/step", "vae_decoder/model"])
@pytest.mark.parametrize("check", [True, False])
def test_a_graph_that_is_replaced_is_not_run(
    copy: Path, recorder: Recorder, name: str, change: str, check: bool
) -> None:
    pipeline = ldmrt.runtime.open(copy, "onnxruntime-cuda", check=check)
    file = copy / f"{name}{CUDA}"
    if change == "removed":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BundleError, match=rf"{name}\.cuda\.onnx was replaced after the bundle was opened"):
        pipeline(**ASKED)
    pipeline.close()


def test_a_graph_that_is_replaced_between_two_sizes_is_not_run(copy: Path, recorder: Recorder) -> None:
    """The fused step is opened anew for each size."""
    pipeline = ldmrt.runtime.open(copy, "onnxruntime-cuda")
    pipeline(**ASKED)
    file = copy / "unet" / "step.cuda.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    pipeline(**ASKED)  # in the session that is open
    with pytest.raises(BundleError, match="was replaced after the bundle was opened"):
        pipeline(**ASKED, height=16, width=24)
    pipeline.close()


def test_nothing_is_kept_for_a_gpu(copy: Path, bundle: Path, recorder: Recorder) -> None:
    expected = draw(bundle)
    np.testing.assert_array_equal(draw(copy, keep_optimized=True), expected)
    assert not (copy / FOLDER).exists()
