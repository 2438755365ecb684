"""Classes in pixels, classes beside captions, and latents of an autoencoder with a codebook."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.model.training.loop.states.kept import saved_states
from ldmrt.model.training.tasks import presets
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.bundle.stages_json import stages_from_json

from ...console.records.cards import check_card
from .repeated import assert_repeats

ASKED: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}


def guided(unet: Any, scheduler: Any, start: torch.Tensor, **told: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The latents that diffusers' network and scheduler draw in four steps; `told` are inputs of both rows."""
    scheduler.set_timesteps(4)
    x = start
    with torch.no_grad():
        for t in scheduler.timesteps:
            rows = [unet(x, t, **{name: pair[row] for name, pair in told.items()}).sample for row in (0, 1)]
            x = scheduler.step(rows[0] + 3.0 * (rows[1] - rows[0]), t, x).prev_sample
    return x


def close(ours: np.ndarray[Any, Any], expected: torch.Tensor) -> None:
    error = np.abs(ours - expected.numpy()).max()
    assert error <= 2e-4 * max(1.0, expected.abs().max().item())  # float32, amplified by guidance


def test_classes_in_pixels_are_drawn_as_diffusers_would(ldmrt: Any, pixels: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = ldmrt(*pixels, "--steps", 2, "--out", out)
    assert ran.code == 0, ran.err
    assert "2 classes, from 0: apple, pear" in ran.err
    assert not (out / "vae").exists()
    check_card(out, "classes", library=None)
    made = load(out)
    assert (made.stage.classes, made.stage.space.codec) == (2, "none")
    assert stages_from_json([made.stage.to_json()]) == (made.stage,)
    unet = diffusers.UNet2DModel.from_pretrained(out / "unet")
    config = diffusers.DDPMScheduler.load_config(out / "scheduler")
    start = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels, null = torch.tensor([1, 0]), torch.tensor([2, 2])
    x = guided(unet, diffusers.DDIMScheduler.from_config(config), start, class_labels=(null, labels))
    ours = torch_pipeline(made)(class_labels=[1, 0], latents=start.numpy(), scheduler="ddim", **ASKED).latents
    close(ours, x)


@pytest.mark.slow(minutes=1)
@pytest.mark.usefixtures("shared_exports")
def test_classes_in_pixels_are_exported_and_drawn(ldmrt: Any, pixels: tuple[object, ...], tmp_path: Path) -> None:
    out, bundle = tmp_path / "out", tmp_path / "bundle"
    assert ldmrt(*pixels, "--steps", 1, "--out", out).code == 0
    exported = ldmrt("export", out, bundle)
    assert exported.code == 0, exported.err
    draw = ("generate", bundle, "", "--guidance", 3, "--steps", 2, "--class", 1, "-o", tmp_path / "drawn.png")
    drawn = ldmrt(*draw)
    assert drawn.code == 0, drawn.err
    assert Image.open(tmp_path / "drawn.png").size == (16, 16)


@pytest.mark.slow(minutes=0.05)
def test_a_run_in_pixels_that_was_stopped_writes_the_same(
    ldmrt: Any, pixels: tuple[object, ...], tmp_path: Path
) -> None:
    assert_repeats(ldmrt, pixels, tmp_path, ("--class-dropout", 0.2))


def test_options_of_latents_are_refused_in_pixels(ldmrt: Any, pixels: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for more, message in (
        (("--cache", "none"), "--cache is for trainings in latents"),
        (("--latents", "fp16"), "--latents is for trainings in latents"),
        (("--size", 17), "unsupported --size; expected a multiple of 2; found 17"),
    ):
        ran = ldmrt(*pixels, "--out", out, *more)
        assert (ran.code, message in ran.error) == (2, True), ran.err
    assert not (out / "training").exists()


@pytest.mark.slow(minutes=0.05)
def test_classes_beside_text_are_drawn_as_diffusers_would(
    ldmrt: Any, beside: tuple[object, ...], tmp_path: Path
) -> None:
    from transformers import CLIPTextModel, CLIPTokenizer

    out = tmp_path / "out"
    ran = ldmrt(*beside, "--class-column", "kind", "--steps", 2, "--validation", 0.4, "--out", out)
    assert ran.code == 0, ran.err
    assert "step 2: validation loss " in ran.err  # held-out images have classes too
    assert "2 classes, from 0: apple, pear" in ran.err
    check_card(out, "ldm", library=None)
    made = load(out)
    assert (made.stage.classes, made.stage.source("prompt") is not None) == (2, True)
    assert stages_from_json([made.stage.to_json()]) == (made.stage,)
    unet = diffusers.UNet2DConditionModel.from_pretrained(out / "unet")
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(out / "text_encoder")
    ids = tokenizer(["", "number 3"], padding="max_length", max_length=32, return_tensors="pt").input_ids
    with torch.no_grad():
        context = encoder(ids).last_hidden_state
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    texts = tuple(row.repeat(2, 1, 1) for row in context.split(1))
    labels = (torch.tensor([2, 2]), torch.tensor([1, 0]))
    scheduler = diffusers.DDIMScheduler.from_pretrained(out / "scheduler")
    x = guided(unet, scheduler, start, encoder_hidden_states=texts, class_labels=labels)  # type: ignore[arg-type]
    pipeline, prompts = torch_pipeline(made), ["number 3"] * 2
    ours = pipeline(prompts, class_labels=[1, 0], latents=start.numpy(), **ASKED).latents
    close(ours, x)
    assert np.abs(ours - pipeline(prompts, class_labels=[0, 1], latents=start.numpy(), **ASKED).latents).max() > 1e-3
    with pytest.raises(LdmrtError, match="this model draws classes; expected class_labels, 0 to 1"):
        pipeline("number 3", num_inference_steps=1)


@pytest.mark.slow(minutes=1)
@pytest.mark.usefixtures("shared_exports")
def test_classes_beside_text_are_exported_and_drawn(ldmrt: Any, beside: tuple[object, ...], tmp_path: Path) -> None:
    out, bundle = tmp_path / "out", tmp_path / "bundle"
    assert ldmrt(*beside, "--class-column", "kind", "--steps", 1, "--out", out).code == 0
    exported = ldmrt("export", out, bundle)
    assert exported.code == 0, exported.err
    drawn = ldmrt("generate", bundle, "number 3", "--class", 1, "--steps", 2, "-o", tmp_path / "drawn.png")
    assert drawn.code == 0, drawn.err
    assert Image.open(tmp_path / "drawn.png").size == (16, 16)


@pytest.mark.slow
def test_a_run_with_classes_that_was_stopped_writes_the_same(
    ldmrt: Any, beside: tuple[object, ...], fruit: Path, tmp_path: Path
) -> None:
    words = (*beside, "--class-column", "kind", "--buckets")
    whole = assert_repeats(ldmrt, words, tmp_path, ("--prediction", "v_prediction"))
    lines = [json.loads(line) for line in (fruit / "metadata.jsonl").read_text().splitlines()]
    lines[0]["kind"] = "apple"
    (fruit / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ran = ldmrt(*words, "--accumulate", 2, "--steps", 4, "--out", whole, "--resume", "--steps", 5, "--change", "steps")
    assert (ran.code, "another classes" in ran.error) == (2, True), ran.err


def test_classes_that_are_none_are_refused(ldmrt: Any, beside: tuple[object, ...], fruit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    lines = [json.loads(line) for line in (fruit / "metadata.jsonl").read_text().splitlines()]
    (other := tmp_path / "other").mkdir()
    for i, text in enumerate("ab"):
        Image.new("RGB", (16, 16)).save(other / f"{i}.png")
        (other / f"{i}.txt").write_text(text)

    def refused(message: str, *more: object) -> None:
        ran = ldmrt(*beside, "--out", out, *more)
        assert (ran.code, message in ran.err) == (2, True), ran.err

    refused("line 1: no colour", "--class-column", "colour")
    refused("every image has a class of its own; expected fewer classes than images; found 5", "--class-column", "text")
    refused("no column of classes", "--class-column", "kind", "--data", other)
    del lines[2]["kind"]
    (fruit / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    refused("line 3: no kind", "--class-column", "kind")
    lines[2] = lines[0] | {"kind": "plum"}
    (fruit / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    refused("0.png is of several classes", "--class-column", "kind")
    assert not saved_states(out)


@pytest.fixture
def codebook(ldmrt: Any, beside: tuple[object, ...], tmp_path: Path) -> tuple[object, ...]:
    """Trains text in the latents of `autoencoder --kind vq`."""
    ae = tmp_path / "ae"
    words = ("train", "autoencoder", *beside[2:10], "--kind", "vq", "--codes", 8, "--steps", 1, "--out", ae)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(presets, "AUTOENCODER", replace(
            presets.AUTOENCODER, block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
        ))  # fmt: skip
        ran = ldmrt(*words)
    assert ran.code == 0, ran.err
    return (*beside[:-1], ae)


@pytest.mark.slow(minutes=0.14)
def test_latents_of_a_codebook(ldmrt: Any, codebook: tuple[object, ...], tmp_path: Path) -> None:
    """What is trained in them draws the same in diffusers, and resumes."""
    whole = assert_repeats(ldmrt, codebook, tmp_path, ("--prediction", "v_prediction"))
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(whole, safety_checker=None)
    assert isinstance(theirs.vae, diffusers.VQModel)
    theirs.set_progress_bar_config(disable=True)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    asked: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}
    expected = theirs("number 3", height=16, width=16, latents=start, **asked).images
    made = load(whole)
    assert made.stage.space.codec == "vq"
    close(torch_pipeline(made)("number 3", latents=start.numpy(), **asked).latents, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_exports")
def test_a_model_with_a_codebook_is_trained_further_and_exported(
    ldmrt: Any, codebook: tuple[object, ...], tmp_path: Path
) -> None:
    weights = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    further = ("--from", tmp_path / "ldm", *codebook[2:6], "--steps", 3, "--previews", 1)
    for words in (
        (*codebook, "--steps", 3, "--out", tmp_path / "ldm"),
        ("train", "lora", *further, "--rank", 2, "--out", tmp_path / "lora"),
        ("train", "finetune", *further, "--out", tmp_path / "finetune"),
        ("export", tmp_path / "finetune", tmp_path / "bundle", "--lora", weights),
        ("verify", tmp_path / "bundle"),
        ("generate", tmp_path / "bundle", "number 3", "--steps", 2, "-o", tmp_path / "image.png"),
    ):
        ran = ldmrt(*words)
        assert ran.code == 0, ran.err
    assert Image.open(tmp_path / "image.png").size == (16, 16)
    assert np.asarray(Image.open(tmp_path / "image.png")).std() > 0
