"""`ldmrt train finetune`: from a checkpoint to one that diffusers loads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load

from ...support.pipelines import save_pipeline
from ..console.records.cards import card_of, check_card
from .runs.saved import last_state


@pytest.mark.slow(minutes=0.23)
@pytest.mark.parametrize("family", ["sd15", "sd2-v", "sdxl"])
def test_what_it_writes_draws_the_same_in_diffusers(ldmrt: Any, pictures: Path, tmp_path: Path, family: str) -> None:
    import diffusers

    source, out = save_pipeline(family, tmp_path / "source"), tmp_path / "out"
    words = ("train", "finetune", "--from", source, "--data", pictures, "--size", 16, "--batch", 2, "--steps", 2)
    words += ("--warmup", 0, "--learning-rate", 1e-2, "--previews", 1, "--train-text-encoder", "--out", out)
    ran = ldmrt(*words)
    assert ran.code == 0, ran.err
    theirs = diffusers.DiffusionPipeline.from_pretrained(out)
    theirs.set_progress_bar_config(disable=True)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    asked = {"num_inference_steps": 4, "guidance_scale": 5.0, "height": 16, "width": 16}
    ours = torch_pipeline(load(out))("two pears", **asked, latents=start.numpy(), output_type="latent").latents
    expected = theirs("two pears", **asked, latents=start, output_type="latent").images.numpy()
    assert np.abs(ours - expected).max() <= 2e-4 * max(1.0, np.abs(expected).max())  # float32, amplified by guidance
    before = torch_pipeline(load(source))("two pears", **asked, latents=start.numpy(), output_type="latent").latents
    assert np.abs(ours - before).max() > 1e-2
    assert (out / "training" / "finetune-000002.png").is_file()
    check_card(out, "finetune", base="source")
    assert "](training/finetune-000002.png)" in card_of(out)
    again = ldmrt(*words, "--steps", 3, "--resume", "--change", "steps")
    assert again.code == 0, again.err
    assert "train_text_encoder = true" in (out / "recipe.toml").read_text()
    assert "- after step 2: `steps` was `2` and is `3`\n" in card_of(out)
    repeated = ldmrt("train", out / "recipe.toml", "--set", "train_text_encoder=false", "--out", tmp_path / "again")
    assert repeated.code == 0, repeated.err
    weights = load_file(tmp_path / "again" / "text_encoder" / "model.safetensors")
    for name, value in load_file(source / "text_encoder" / "model.safetensors").items():
        key = name if name in weights else f"text_model.{name}"
        assert torch.equal(weights[key], value)


def test_bad_checkpoints_are_refused_before_any_step(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    source = save_pipeline("sd15", tmp_path / "source")
    out = tmp_path / "out"
    words = ("train", "finetune", "--from", source, "--data", pictures, "--size", 16, "--out", out)
    scheduler = json.loads((source / "scheduler" / "scheduler_config.json").read_text())
    zero = scheduler | {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}
    (source / "scheduler" / "scheduler_config.json").write_text(json.dumps(zero))
    assert "rescale_betas_zero_snr cannot be combined with prediction_type epsilon" in ldmrt(*words).error
    (source / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    assert "expected a multiple of 2" in ldmrt(*words, "--size", 15).error
    path = source / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    save_file({**weights, "conv_in.bias": weights["conv_in.bias"] * torch.nan}, path, metadata={"format": "pt"})
    assert "conv_in.bias" in ldmrt(*words).error
    config = json.loads((source / "unet" / "config.json").read_text())
    (source / "unet" / "config.json").write_text(json.dumps(config | {"in_channels": 5}))
    assert "in_channels of unet/config.json is not latent_channels of vae/config.json; expected 4; found 5" in (
        ldmrt(*words).error
    )
    (source / "unet" / "config.json").write_text(json.dumps(config | {"cross_attention_dim": 20}))
    assert "is not hidden_size of text_encoder/config.json; expected 24; found 20" in ldmrt(*words).error


def test_the_size_is_the_checkpoints_or_chosen(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    source = save_pipeline("sd15", tmp_path / "source")
    words = ("train", "finetune", "--from", source, "--data", pictures, "--batch", 2, "--steps", 1, "--previews", 0)
    ran = ldmrt(*words, "--out", tmp_path / "out")
    assert ran.code == 2
    size = json.loads((source / "unet" / "config.json").read_text())["sample_size"] * 2  # pixels of one latent
    assert f"--size is not that of the checkpoint; expected {size} pixels; found 64" in ran.error
    assert not (tmp_path / "out" / "training").exists()


def test_a_checkpoint_is_not_replaced_by_its_own_training(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    source = save_pipeline("sd15", tmp_path / "source")
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    ran = ldmrt("train", "finetune", "--from", source, "--data", pictures, "--size", 16, "--out", source)
    assert ran.code == 2
    assert "--out is the checkpoint that --from names" in ran.error
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


def test_each_average_is_written_when_it_is_the_first(ldmrt: Any, pictures: Path, tmp_path: Path) -> None:
    source, out = save_pipeline("sd15", tmp_path / "source"), tmp_path / "out"
    words = ("train", "finetune", "--from", source, "--data", pictures, "--size", 16, "--batch", 2, "--steps", 3)
    words += ("--warmup", 0, "--learning-rate", 1e-2, "--previews", 0, "--out", out)
    path = out / "unet" / "diffusion_pytorch_model.safetensors"
    assert ldmrt(*words, "--ema", 0.1, "--ema", 0.0).code == 0
    first, state = load_file(path), last_state(out)
    assert all(torch.equal(value, state["average"][f"unet.{name}"]) for name, value in first.items())
    again = ldmrt(*words, "--ema", 0.0, "--ema", 0.1, "--resume")
    assert again.code == 0, again.err
    second = load_file(path)
    assert all(torch.equal(value, state["module"][f"unet.{name}"]) for name, value in second.items())  # of decay 0
    assert not torch.equal(first["conv_in.weight"], second["conv_in.weight"])
    assert "another ema; expected (0.0, 0.1); found 0.999" in ldmrt(*words, "--resume").error
    assert "not a number" in ldmrt(*words, "--ema", "nan", "--resume").err
