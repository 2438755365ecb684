"""`--loss-mask`: masks of ones change no bit, others change the loss, and images without one are refused."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ....support.pipelines import save_pipeline
from ..runs.saved import last_state

UNET = Path("unet") / "diffusion_pytorch_model.safetensors"


@pytest.mark.slow(minutes=0.05)
def test_masks_by_command(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    source, masks = save_pipeline("sd15", tmp_path / "source"), tmp_path / "masks"
    masks.mkdir()
    for path in pictures.glob("*.png"):
        with Image.open(path) as image:
            image.putalpha(255)
            image.save(path)
            Image.new("L", image.size, 255).save(masks / path.name)
    words = ("train", "finetune", "--from", source, "--data", pictures, "--size", 16, "--batch", 2, "--steps", 2)
    words += ("--warmup", 0, "--previews", 0, "--flip", "--validation", 0.4)
    for name, mask in {"none": (), "alpha": ("--loss-mask", "alpha"), "files": ("--loss-mask", masks)}.items():
        ran = ldmrt(*words, *mask, "--out", tmp_path / name)
        assert ran.code == 0, ran.err
        assert (tmp_path / name / UNET).read_bytes() == (tmp_path / "none" / UNET).read_bytes()
    assert last_state(tmp_path / "files")["about"]["loss_mask"] == "folder"
    resumed = ldmrt(*words, "--out", tmp_path / "files", "--resume", "--loss-mask", "alpha")
    assert "another --loss-mask; expected folder; found alpha" in resumed.error
    for path in masks.iterdir():
        with Image.open(path) as image:
            Image.new("L", image.size, 51).save(path)
    assert ldmrt(*words, "--loss-mask", masks, "--out", tmp_path / "fifth").code == 0
    assert (tmp_path / "fifth" / UNET).read_bytes() != (tmp_path / "none" / UNET).read_bytes()


@pytest.mark.parametrize("mask", ["alpha", "masks", "nowhere"])
def test_images_without_masks_are_refused_before_any_step(
    ldmrt: Any, pictures: Path, tmp_path: Path, mask: str
) -> None:
    source, out = save_pipeline("sd15", tmp_path / "source"), tmp_path / "out"
    (tmp_path / "masks").mkdir()
    given = "alpha" if mask == "alpha" else tmp_path / mask
    words = ("train", "finetune", "--from", source, "--data", pictures, "--size", 16, "--out", out)
    ran = ldmrt(*words, "--loss-mask", given)
    assert ran.code == 2
    lacking = {"alpha": "no alpha, its mode is RGB", "masks": f"{tmp_path / 'masks' / '1.png'} is missing"}
    named = f"line 2: 1.png has no mask ({lacking.get(mask)})" if mask in lacking else "no folder of masks"
    assert named in ran.err
    assert not (out / "training").exists()
