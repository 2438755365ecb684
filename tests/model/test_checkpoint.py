"""Checkpoints against diffusers' pipelines, both ways, and every damage as one error that names it."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldmrt.model import Autoencoder, Checkpoint, load
from ldmrt.model.checkpoint import save_network, with_scaling_factor
from ldmrt.model.config import to_config
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.tokenizer import Tokenizer

UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
KEY = {UNET: "conv_in.weight", VAE: "quant_conv.weight", TEXT: "final_layer_norm.weight"}


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
        DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same(load(tmp_path / "theirs"), theirs)


def test_folder_saved_by_ours_loads_in_diffusers(checkpoint: Path) -> None:
    theirs = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    assert isinstance(theirs.scheduler, DDIMScheduler)
    assert_same(load(checkpoint), theirs)


def rename(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda state: [state.update({key.replace(old, new): state.pop(key)}) for key in list(state) if old in key]


def old_attention(state: dict[str, torch.Tensor]) -> None:
    for pair in ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")):
        rename(*pair)(state)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: tensors(TEXT, rename("", ""))(f),
        pytest.param(lambda f: tensors(VAE, old_attention)(f), marks=BUG),
        pytest.param(
            lambda f: tensors(TEXT, lambda s: s.update({"text_model.embeddings.position_ids": torch.arange(16)[None]}))(f),
            marks=BUG,
        ),
        pytest.param(lambda f: edit("unet/config.json", {"upcast_attention": True})(f), marks=BUG),
    ],
    ids=["nothing", "old names of the attention", "position ids", "attention in float32, which it is"],
)
def test_older_checkpoints_that_diffusers_loads(change: Callable[[Path], Any], checkpoint: Path, tmp_path: Path) -> None:
    """Stable Diffusion 1.5's files have the names and the surplus tensor, 2.1's config has the key."""
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    change(folder)
    assert_same(load(folder), StableDiffusionPipeline.from_pretrained(folder, safety_checker=None))


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


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        state = load_file(folder / name)
        change(state)
        save_file(state, folder / name, metadata={"format": "pt"})

    return damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def six_latents(folder: Path) -> None:
    vae = Autoencoder(dataclasses.replace(load(folder).vae.config, latent_channels=6))
    save_network(folder / "vae", vae, to_config("AutoencoderKL", vae.config), torch.float32)


def edit(name: str, change: dict[str, Any]) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | change))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no folder"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "vocab.json"),
    "config is not JSON": (lambda f: (f / "unet/config.json").write_text("{"), "unet/config.json"),
    "config is no text": (lambda f: (f / "vae/config.json").write_bytes(b"\xff\xfe{}"), "vae/config.json"),
    "config is a list": (lambda f: (f / "vae/config.json").write_text("[]"), "vae/config.json.*JSON object"),
    "latent channels": (six_latents, "in_channels.*expected 6; found 4"),
    **{
        f"missing {name}": (lambda f, name=name: (f / name).unlink(), f"missing file.*{name}")
        for name in (UNET, VAE, TEXT, "unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")
    },
    **{f"cut off {name}": (lambda f, name=name: cut(f / name), f"cannot read .*{name}") for name in KEY},
    **{f"missing tensor of {n}": (tensors(n, lambda s, k=k: s.pop(k)), f"missing.*{k}") for n, k in KEY.items()},
    **{
        f"misshapen tensor of {n}": (tensors(n, lambda s, k=k: s.update({k: s[k][:1].clone()})), f"wrong shape of {k}")
        for n, k in KEY.items()
    },
    **{f"nan in {n}": (tensors(n, lambda s, k=k: s[k].view(-1)[-1:].fill_(torch.nan)), k) for n, k in KEY.items()},
    **{f"surplus in {n}": (tensors(n, lambda s: s.update(odd=torch.ones(1))), "no place; found odd") for n in KEY},
}
BUGS = {  # what the source lets through, or answers with another error
    "activation": (edit("text_encoder/config.json", {"hidden_act": "frobnicate"}), "text_encoder"),
    "text config": (edit("text_encoder/config.json", {"num_attention_heads": 5}), "text_encoder"),
    "text width": (edit("unet/config.json", {"cross_attention_dim": 32}), "cross_attention_dim.*hidden_size"),
}


BUG = pytest.mark.xfail(strict=True, reason="the source lets it through, or fails with another error")


@pytest.mark.parametrize("name", [*DAMAGES, *(pytest.param(name, marks=BUG) for name in BUGS)])
def test_damage_is_named(name: str, checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    damage, named = (DAMAGES | BUGS)[name]
    damage(folder)
    with pytest.raises(LdmrtError, match=named):
        load(folder)
