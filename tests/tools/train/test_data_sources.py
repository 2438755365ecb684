"""The sources of `--data`: every one is checked before the first step, and trained on."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldmrt.model.training.data.listing import images_in
from ldmrt.model.training.tasks import presets
from ldmrt.tools.console.training import checks

from ...support.image_files import three_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three_images(tmp_path / "images")


def table(folder: Path, *rows: tuple[str, ...]) -> None:
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.mark.parametrize("source", ["csv", "beside", "prompt"])
def test_check_reads_every_source(source: str, ldmrt: Any, folder: Path) -> None:
    more: list[str] = []
    if source == "csv":
        table(folder, ("file_name", "alt"), *((path.name, "a caption") for path in images_in(folder)))
        more = ["--caption-column", "alt"]
    elif source == "beside":
        for path in images_in(folder):
            path.with_suffix(".txt").write_text("a caption")
    else:
        more = ["--prompt", "a caption"]
    ran = ldmrt("data", "check", folder, "--size", 8, *more)
    assert (ran.code, ran.out) == (0, f"{folder}: 3 captioned images can be used\n")
    (folder / "b.png").write_bytes(b"")
    Image.new("L", (1, 1)).save(folder / "c.WEBP")
    ran = ldmrt("data", "check", folder, "--size", 8, *more)
    assert ran.code == 2
    assert f"2 {'lines' if source == 'csv' else 'images'} of {folder}" in ran.err
    assert "b.png is empty" in ran.err
    assert "c.WEBP is 1 pixels" in ran.err


@pytest.fixture
def shaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[object]]:
    """The words of a training of small networks on images of several shapes."""
    config = replace(presets.AUTOENCODER, block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2)
    monkeypatch.setattr(presets, "AUTOENCODER", config)
    monkeypatch.setattr(presets, "UNET", replace(presets.UNET, block_out_channels=(32, 32), norm_num_groups=8))
    monkeypatch.setattr(checks, "SHOWN", 4)
    folder = tmp_path / "shaped"
    folder.mkdir()
    for i, size in enumerate(((70, 40), (40, 70), (48, 48), (80, 45), (32, 31))):
        Image.new("RGB", size, (50 * i, 0, 90)).save(folder / f"{i}.png")

    def words(task: str, out: Path, *more: object, steps: int) -> list[object]:
        given = ("--data", folder, "--prompt", "a colour", "--size", 64, "--buckets", "--batch", 2, "--warmup", 1)
        return ["train", task, *given, "--out", out, "--steps", steps, *more]

    return words


@pytest.mark.slow(minutes=0.11)
def test_trainings_on_buckets_resume_exactly(ldmrt: Any, shaped: Callable[..., list[object]], tmp_path: Path) -> None:
    autoencoder, skipping = tmp_path / "ae", ("--on-small", "skip", "--validation", 0.5, "--schedule", "constant")
    ran = ldmrt(*shaped("autoencoder", autoencoder, "--on-small", "skip", steps=2))
    assert ran.code == 0, ran.err
    more = ("--autoencoder", autoencoder, *skipping)
    for out, steps, resume in (("whole", 4, ()), ("halves", 2, ()), ("halves", 4, ("--resume",))):
        ran = ldmrt(*shaped("ldm", tmp_path / out, *more, *resume, steps=steps))
        assert ran.code == 0, ran.err
        assert "validation loss" in ran.err
    files = [tmp_path / out / "unet" / "diffusion_pytorch_model.safetensors" for out in ("whole", "halves")]
    assert files[0].read_bytes() == files[1].read_bytes()
    logs = [(tmp_path / out / "log.jsonl").read_text().splitlines()[-1] for out in ("whole", "halves")]
    assert json.loads(logs[0])["validation"] == json.loads(logs[1])["validation"]

    words = shaped("ldm", tmp_path / "whole", *more, "--resume", steps=4)
    ran = ldmrt(*(word for word in words if word != "--buckets"))
    assert "trained with another --buckets; expected True; found None" in ran.error
    ran = ldmrt(*(word for word in words if word != "--buckets"), "--change", "buckets")
    assert "trained with another --data" in ran.error


def test_buckets_are_for_trainings_that_take_any_shape(
    ldmrt: Any, shaped: Callable[..., list[object]], tmp_path: Path
) -> None:
    for task in ("unconditional", "upscaler"):
        assert "this training is of squares" in ldmrt(*shaped(task, tmp_path / task, steps=1)).error
    small = ldmrt(*shaped("autoencoder", tmp_path / "ae", "--size", 128, steps=1)).error
    assert "cannot be used" in small
