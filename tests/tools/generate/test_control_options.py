"""Controls on the command line: exported with a checkpoint, and steering a picture."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from PIL import Image

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load, load_adapter

from ...support.pipelines import randomise

PROMPT = "two pears"


@pytest.fixture
def sketch(tmp_path: Path) -> Path:
    """An adapter for the tiny checkpoint."""
    made = diffusers.T2IAdapter(channels=(16, 32), downscale_factor=2, num_res_blocks=1)
    randomise(made).save_pretrained(tmp_path / "sketch")
    return tmp_path / "sketch"


@pytest.mark.slow(minutes=0.07)
def test_adapter_is_exported_beside_what_is_there(
    ldmrt: Any, checkpoint: Path, bundle: Path, sketch: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    only = ("--components", "adapter_sketch", "--no-verify")
    ran = ldmrt("export", checkpoint, copy, "--adapter", f"sketch={sketch}", *only)
    assert (ran.code, ran.out) == (0, f"{copy}\n")
    assert "adapter_sketch: exported" in ran.err
    rows = json.loads((copy / "ldmrt.json").read_text())["components"]
    assert [name for name, *_ in rows["adapter_sketch"]["outputs"]] == [
        f"down_intrablock_residual_{i}" for i in range(2)
    ]
    assert "adapter_sketch" in ldmrt("inspect", copy).out
    # the U-Net was not exported again, so it takes none
    Image.new("RGB", (16, 16), "white").save(tmp_path / "in.png")
    ran = ldmrt("generate", copy, PROMPT, "--control", f"sketch={tmp_path / 'in.png'}", "-o", tmp_path / "out.png")
    assert "control sketch: the U-Net here takes no down_intrablock_residual_0" in ran.error


def test_adapter_steers(
    ldmrt: Any, checkpoint: Path, bundle: Path, sketch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_sketch = replace(load(checkpoint), controls={"adapter_sketch": load_adapter(sketch)})
    monkeypatch.setattr("ldmrt.runtime.pipeline.opening.open_pipeline", lambda *_, **__: torch_pipeline(with_sketch))
    picture = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "in.png")
    out, asked = tmp_path / "out.png", f"sketch={tmp_path / 'in.png'}:0.5"
    assert ldmrt("generate", bundle, PROMPT, "--steps", 2, "--control", asked, "-o", out).code == 0
    drawn = [
        torch_pipeline(with_sketch)(PROMPT, num_inference_steps=2, controls=controls).pixels[0]
        for controls in ({"sketch": (picture, 0.5)}, {"sketch": picture}, {})
    ]
    assert len({picture.tobytes() for picture in drawn}) == 3
    with Image.open(out) as image:
        np.testing.assert_array_equal(np.asarray(image), drawn[0])
        assert json.loads(image.text["ldmrt"])["controls"] == {"sketch": ["in.png", 0.5]}


def test_adapter_of_another_family_is_refused_before_anything_is_written(
    ldmrt: Any, checkpoint: Path, tmp_path: Path
) -> None:
    diffusers.T2IAdapter(channels=(16, 24), downscale_factor=2).save_pretrained(tmp_path / "foreign")
    ran = ldmrt("export", checkpoint, tmp_path / "deep" / "new", "--adapter", f"sketch={tmp_path / 'foreign'}")
    assert "adapter_sketch: does not fit this U-Net in down_intrablock_residual_1" in ran.error
    assert [path.name for path in tmp_path.iterdir()] == ["foreign"]


def test_verify_takes_the_same_options(ldmrt: Any, checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    for option in ("--adapter", "--controlnet"):
        ran = ldmrt("verify", bundle, "--against", checkpoint, option, f"sketch={tmp_path / 'none'}")
        assert f"{option[2:]}: missing file; expected {tmp_path / 'none' / 'config.json'}" in ran.error
