"""LoRA files made for the tests, and what diffusers makes of them."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from ldmrt.model import load

State = dict[str, Tensor]
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
OTHER = ["proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "time_emb_proj"]
CONVOLUTIONS = ["conv_in", "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def adapter(network: Any, targets: list[str], rank: int, **more: Any) -> State:
    """Random factors, none zero, for these modules of one of diffusers' networks."""
    network.add_adapter(LoraConfig(r=rank, target_modules=targets, init_lora_weights=False, **more))
    state = {key: value.detach().clone() for key, value in get_peft_model_state_dict(network).items()}
    return {key: torch.randn_like(value) * 0.2 for key, value in state.items()}


def tiny_factors(checkpoint: Path) -> State:
    """Rank 4 for nearly every matrix and convolution of the tiny checkpoint, in PEFT's names."""
    torch.manual_seed(7)
    theirs = pipeline(checkpoint)
    unet = adapter(theirs.unet, ATTENTION + OTHER + CONVOLUTIONS, 4)
    text = adapter(theirs.text_encoder, TEXT, 4)
    return {f"unet.{k}": v for k, v in unet.items()} | {f"text_encoder.{k}": v for k, v in text.items()}


def pipeline(checkpoint: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)


def parts(theirs: Any) -> dict[str, nn.Module]:
    """The networks of a pipeline that diffusers loads a LoRA into."""
    return {name: getattr(theirs, name) for name in theirs._lora_loadable_modules if hasattr(theirs, name)}


def ours(checkpoint: Path) -> dict[str, nn.Module]:
    """What a LoRA is merged into."""
    networks = load(checkpoint).networks
    return {name: networks[name] for name in ("unet", "text_encoder")}


def weights(networks: dict[str, nn.Module]) -> State:
    """Every weight by its name, copied."""
    return {
        f"{c}.{key}": v.detach().clone() for c, network in networks.items() for key, v in network.state_dict().items()
    }


def fused(theirs: Any, files: Iterable[tuple[Path, float]]) -> State:
    """The weights as diffusers fuses them."""
    names = []
    for i, (path, _) in enumerate(files):
        theirs.load_lora_weights(path.parent, weight_name=path.name, adapter_name=f"a{i}")
        names.append(f"a{i}")
    theirs.set_adapters(names, [weight for _, weight in files])
    theirs.fuse_lora(components=list(parts(theirs)), adapter_names=names)
    theirs.unload_lora_weights()
    return weights(parts(theirs))


def assert_same(found: State, expected: State, before: State) -> set[str]:
    """Equal weights; returns which of them changed."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # float32: a sum of up to 8 products, and up to 3 sums in another order
        assert (found[key] - value).abs().max() <= 1e-6 * value.abs().max(), key
    return {key for key, value in found.items() if (value - before[key]).abs().max() > 1e-3}


def kohya(state: State, alphas: dict[str, float] | None = None) -> State:
    """The names that kohya's scripts give to PEFT's; `alphas` by a part of the name, the rank where none is given."""
    renamed = convert_state_dict_to_kohya(state)
    for part, alpha in (alphas or {}).items():
        for key in renamed:
            if key.endswith(".alpha") and part in key:
                renamed[key] = torch.tensor(alpha)
    return renamed


def save(state: State, path: Path, **notes: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata=notes or None)
    return path


def rename(state: State, *names: tuple[str, str]) -> State:
    for pattern, new in names:
        state = {re.sub(pattern, new, key): value for key, value in state.items()}
    return state


def only_unet(state: State) -> State:
    return {key: value for key, value in state.items() if key.startswith("unet.")}


def whole(state: State) -> State:
    return state
