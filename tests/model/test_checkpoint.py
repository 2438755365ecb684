"""Checkpoints against diffusers' pipelines, both ways, and every damage as one error that names it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldmrt.model import Checkpoint, load
from ldmrt.model.checkpoint import with_scaling_factor
from ldmrt.runtime.tokenizer import Tokenizer

UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@torch.no_grad()
def assert_same(ours: Checkpoint, theirs: StableDiffusionPipeline) -> None:
    """Equal weights under equal names, equal outputs, equal ids, equal scheduler."""
    for mine, other in ((ours.unet, theirs.unet), (ours.vae, theirs.vae), (ours.text_encoder, theirs.text_encoder)):
        expected = other.state_dict()
        assert mine.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in mine.state_dict().items())
    text = ["a red apple, noto style", "two pears"]
    ids = theirs.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert Tokenizer(ours.tokenizer)(text).tolist() == ids.tolist()
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(2, ours.unet.config.in_channels, 8, 8, generator=generator)
    context = theirs.text_encoder(ids).last_hidden_state
    t = torch.tensor([3, 700])
    picture = theirs.vae.decode(latent).sample
    for found, expected in (
        (ours.text_encoder(ids).last_hidden_state, context),
        (ours.unet(latent, t, context), theirs.unet(latent, t, context).sample),
        (ours.vae.decode(latent), picture),
        (ours.vae.encode(picture), theirs.vae.encode(picture).latent_dist.parameters),
    ):
        # float32 sums in another order; the weights are the same to the bit, and test_unet compares in float64
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert ours.vae.config.scaling_factor == theirs.vae.config.scaling_factor
    for key in ("beta_start", "beta_end", "beta_schedule", "prediction_type", "steps_offset", "num_train_timesteps"):
        assert ours.scheduler[key] == theirs.scheduler.config[key]


def test_folder_saved_by_diffusers_loads(checkpoint: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    widths: dict[str, Any] = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 2}
    blocks = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    theirs = StableDiffusionPipeline(
        AutoencoderKL(3, 3, ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2, scaling_factor=0.5, **widths),
        CLIPTextModel(text).eval(),
        tokenizer,
        UNet2DConditionModel(8, 4, 4, False, True, 0, blocks[0], up_block_types=blocks[1], cross_attention_dim=16,
                             attention_head_dim=2, **widths),
        DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same(load(tmp_path / "theirs"), theirs)


def test_folder_saved_by_ours_loads_in_diffusers(checkpoint: Path) -> None:
    theirs = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    assert isinstance(theirs.scheduler, DDIMScheduler)
    assert_same(load(checkpoint), theirs)


def test_save_load_save_gives_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    load(checkpoint).save(tmp_path)
    names = {path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()} == names
    assert {Path(name) for name in (UNET, VAE, TEXT, "model_index.json", "tokenizer/vocab.json")} <= names
    assert all((checkpoint / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


def test_half_precision_on_disk_is_float32_in_memory(checkpoint: Path, tmp_path: Path) -> None:
    load(checkpoint).save(tmp_path, torch.float16)
    loaded, whole = load(tmp_path), load(checkpoint)
    for name, network, other in (
        (UNET, loaded.unet, whole.unet),
        (VAE, loaded.vae, whole.vae),
        (TEXT, loaded.text_encoder, whole.text_encoder),
    ):
        assert {value.dtype for value in load_file(tmp_path / name).values()} == {torch.float16}
        expected = other.state_dict()
        assert all(torch.equal(v, expected[k].half().float()) for k, v in network.state_dict().items())
    assert CLIPTextModel.from_pretrained(tmp_path / "text_encoder").dtype == torch.float16


def test_with_scaling_factor(checkpoint: Path) -> None:
    assert with_scaling_factor(load(checkpoint).vae, 0.25).config.scaling_factor == 0.25


def rename_attention(state: dict[str, torch.Tensor]) -> None:
    """To the names of diffusers before 0.17."""
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for key in list(state):
        for new, old in names.items():
            if new in key:
                state[key.replace(new, old)] = state.pop(key)


def prefix(state: dict[str, torch.Tensor]) -> None:
    """To the names of transformers before 5, with the tensor that it saved though it is no weight."""
    for key in list(state):
        state[f"text_model.{key}"] = state.pop(key)
    state["text_model.embeddings.position_ids"] = torch.arange(16)[None]


OLDER = {
    "1.5, text encoder": (TEXT, prefix, {}),
    "1.5, autoencoder": (VAE, rename_attention, {}),
    "2.1: attention in float32, which it is": (UNET, lambda state: None, {"upcast_attention": True}),
}


@pytest.mark.parametrize("name", list(OLDER))
def test_what_diffusers_loads_loads(name: str, checkpoint: Path, tmp_path: Path) -> None:
    """The files of Stable Diffusion 1.5 and 2.1 have these."""
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    file, change, more = OLDER[name]
    weights, config = folder / file, folder / file.split("/")[0] / "config.json"
    state = load_file(weights)
    change(state)
    save_file(state, weights, metadata={"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | more))
    assert_same(load(folder), StableDiffusionPipeline.from_pretrained(folder, safety_checker=None))
