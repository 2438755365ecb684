"""`--regularisation`: images that are learned beside the others, by command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ldmrt.model.networks.autoencoder import Autoencoder

from ....support.pipelines import save_pipeline
from ...console.records.cards import card_of, check_card
from ..conditions.repeated import assert_repeats

UNET = Path("unet") / "diffusion_pytorch_model.safetensors"
LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Four images without captions, of the names that the others have."""
    folder = tmp_path / "others"
    folder.mkdir()
    for i in range(4):
        pixels = np.random.default_rng(20 + i).integers(0, 256, (16, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def words_of(task: str, tmp_path: Path, pictures: Path) -> tuple[object, ...]:
    """A training of a tiny checkpoint, but for --out and --steps."""
    source = tmp_path / "source" if (tmp_path / "source").exists() else save_pipeline("sd15", tmp_path / "source")
    words = ("train", task, "--from", source, "--data", pictures, "--size", 16, "--batch", 2, "--warmup", 0)
    return (*words, "--learning-rate", 1e-2, "--previews", 0, *(("--rank", 2) if task == "lora" else ()))


@pytest.mark.slow(minutes=0.06)
def test_finetune_repeats(ldmrt: Any, pictures: Path, others: Path, tmp_path: Path) -> None:
    words = (*words_of("finetune", tmp_path, pictures), "--regularisation", others, "--regularisation-prompt", "fruit")
    words += ("--regularisation-weight", 0.5, "--log-every", 1)
    whole = assert_repeats(ldmrt, words, tmp_path, ("--regularisation-weight", 0.25))
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["parts"].keys() == {"denoising", "regularisation"}
        assert line["loss"] == pytest.approx(sum(line["parts"].values()), rel=1e-12)
        by_timestep = [loss for loss in line["loss_by_timestep"] if loss is not None]
        assert np.mean(by_timestep) == pytest.approx(line["parts"]["denoising"], rel=1e-12)  # of one or two samples
    check_card(whole, "finetune", base="source")
    assert "| regularisation images | 4, with a weight of 0.5 |" in card_of(whole)
    assert "--regularisation others" in card_of(whole)
    (others / "0.txt").write_text("another caption")
    gone = ldmrt(*words, "--steps", 5, "--out", tmp_path / "parts", "--resume")
    assert (gone.code, "another regularisation" in gone.error) == (2, True)
    plain = words_of("finetune", tmp_path, pictures)
    gone = ldmrt(*plain, "--schedule", "constant", "--accumulate", 2, "--out", tmp_path / "parts", "--resume")
    assert (gone.code, "another regularisation, regularisation-weight" in gone.error) == (2, True)


def test_lora_repeats(ldmrt: Any, pictures: Path, others: Path, tmp_path: Path) -> None:
    plain = (*words_of("lora", tmp_path, pictures), "--schedule", "constant", "--train-text-encoder")
    words = (*plain, "--regularisation", others, "--regularisation-prompt", "fruit")
    for out, given in {"whole": (*words, "--steps", 4), "parts": (*words, "--steps", 2), "plain": plain}.items():
        ran = ldmrt(*given, *(("--steps", 4) if given is plain else ()), "--out", tmp_path / out)
        assert ran.code == 0, ran.err
    assert ldmrt(*words, "--steps", 4, "--out", tmp_path / "parts", "--resume").code == 0
    whole, parts, alone = ((tmp_path / out / LORA) for out in ("whole", "parts", "plain"))
    assert whole.read_bytes() == parts.read_bytes()
    assert any(not torch.equal(value, load_file(alone)[name]) for name, value in load_file(whole).items())
    check_card(tmp_path / "whole", "lora", base="source")


def test_a_prompt_is_of_its_own_images(ldmrt: Any, pictures: Path, others: Path, tmp_path: Path) -> None:
    """Captions beside the images say the same as a prompt; `--prefix` is for the training's alone."""
    words = (*words_of("finetune", tmp_path, pictures), "--steps", 2, "--prefix", "sks", "--regularisation", others)
    assert ldmrt(*words, "--regularisation-prompt", "fruit", "--out", tmp_path / "prompt").code == 0
    for path in others.glob("*.png"):
        path.with_suffix(".txt").write_text("fruit")
    assert ldmrt(*words, "--out", tmp_path / "texts").code == 0
    for path in others.glob("*.txt"):
        path.write_text("sks fruit")
    assert ldmrt(*words, "--out", tmp_path / "prefixed").code == 0
    weights = {out: (tmp_path / out / UNET).read_bytes() for out in ("prompt", "texts", "prefixed")}
    assert weights["prompt"] == weights["texts"] != weights["prefixed"]


@pytest.mark.slow(minutes=0.14)
@pytest.mark.parametrize("more", [(), ("--flip", "--buckets")])
def test_any_cache_gives_the_same_bits(
    ldmrt: Any, pictures: Path, others: Path, tmp_path: Path, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*words_of("finetune", tmp_path, pictures), "--steps", 4, "--regularisation", others, *more)
    words += ("--regularisation-prompt", "fruit")
    shared = ("--cache", "disk", "--cache-folder", tmp_path / "shared")
    for out, cache in {"memory": (), "none": ("--cache", "none"), "disk": shared}.items():
        ran = ldmrt(*words, *cache, "--out", tmp_path / out)
        assert ran.code == 0, ran.err

    def encoded(*_: Any) -> Any:
        raise AssertionError("an image was encoded")

    monkeypatch.setattr(Autoencoder, "encode", encoded)
    monkeypatch.setattr("ldmrt.model.training.data.captioned.fitted", encoded)
    assert ldmrt(*words, *shared, "--out", tmp_path / "again").code == 0
    for out in ("none", "disk", "again"):
        assert (tmp_path / out / UNET).read_bytes() == (tmp_path / "memory" / UNET).read_bytes()


def test_skipped_images_are_told(ldmrt: Any, pictures: Path, others: Path, tmp_path: Path) -> None:
    (others / "2.png").write_bytes(b"")
    words = (*words_of("finetune", tmp_path, pictures), "--steps", 2, "--regularisation", others, "--batch", 6)
    ran = ldmrt(*words, "--regularisation-prompt", "fruit", "--on-bad", "skip", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert f"skipped 1 images of {others}" in ran.err
    assert "3 regularisation images for batches of 6: a batch repeats some of them" in ran.err
    assert "| regularisation images | 3, with a weight of 1 |" in card_of(tmp_path / "out")


BAD = {
    "no folder": (("--regularisation-prompt", "fruit"), "--regularisation-prompt needs --regularisation"),
    "no folder of a weight": (("--regularisation-weight", 2), "--regularisation-weight needs --regularisation"),
    "a weight of nothing": (("--regularisation", "OTHERS", "--regularisation-weight", 0), "0 is not in the range"),
    "a weight of no number": (("--regularisation", "OTHERS", "--regularisation-weight", "nan"), "not a number"),
    "no captions": (("--regularisation", "OTHERS"), "and there is no --regularisation-prompt"),
    "two captions": (
        ("--regularisation", "PICTURES", "--regularisation-prompt", "fruit"),
        "--regularisation-prompt is for images without metadata",
    ),
    "nothing there": (("--regularisation", "NOWHERE"), "no images in"),
    "an image that is none": (("--regularisation", "DAMAGED", "--regularisation-prompt", "fruit"), "1.png"),
    "a tiny image": (("--regularisation", "SMALL", "--regularisation-prompt", "fruit"), "0.png"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_step(
    ldmrt: Any, pictures: Path, others: Path, tmp_path: Path, case: str
) -> None:
    for name in ("damaged", "small"):
        (tmp_path / name).mkdir()
    (tmp_path / "damaged" / "1.png").write_bytes(b"no image")
    Image.new("RGB", (4, 4)).save(tmp_path / "small" / "0.png")
    places = {"OTHERS": others, "PICTURES": pictures} | {
        name.upper(): tmp_path / name for name in ("nowhere", "damaged", "small")
    }
    given, message = BAD[case]
    for task in ("finetune", "lora"):
        out = tmp_path / task
        words = (*words_of(task, tmp_path, pictures), "--steps", 2, "--out", out)
        ran = ldmrt(*words, *(places.get(str(word), word) for word in given))
        assert ran.code == 2
        assert message in ran.err
        assert not (out / "training").exists()
        assert not (out / "recipe.toml").exists()
