"""Every damage of a checkpoint is one LdmrtError that names it."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldmrt.model import Autoencoder, load
from ldmrt.model.checkpoint import save_network, text_encoder
from ldmrt.model.config import to_config
from ldmrt.runtime import LdmrtError

UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
KEY = {UNET: "conv_in.weight", VAE: "quant_conv.weight", TEXT: "final_layer_norm.weight"}


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


def narrow_text(folder: Path) -> None:
    config = {**load(folder).text_encoder.config.to_dict(), "hidden_size": 16}
    save_network(folder / "text_encoder", text_encoder(config), config, torch.float32, "model.safetensors")


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
SUBTLE = {  # what nothing would notice before it runs
    "activation": (edit("text_encoder/config.json", {"hidden_act": "frobnicate"}), "text_encoder"),
    "text config": (edit("text_encoder/config.json", {"num_attention_heads": 5}), "text_encoder"),
    "text width": (narrow_text, "cross_attention_dim"),
}


@pytest.mark.parametrize("name", [*DAMAGES, *SUBTLE])
def test_damage_is_named(name: str, checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    damage, named = (DAMAGES | SUBTLE)[name]
    damage(folder)
    with pytest.raises(LdmrtError, match=named):
        load(folder)
