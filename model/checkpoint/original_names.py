"""Map the name of each weight to the one in files of CompVis' and Stability AI's programs."""

import re
from collections.abc import Mapping
from functools import partial

from ldmrt.model.networks.unet import UNetConfig
from ldmrt.model.weights.lazy import Lazy, Place, as_it_is
from ldmrt.model.weights.weights import bare
from ldmrt.runtime.files.lora.original_unet import unet_modules

UNET, VAE = "model.diffusion_model.", "first_stage_model."


def ldm_modules(config: UNetConfig) -> dict[str, str]:
    """Map each module of the U-Net in diffusers' naming to that of the original code (CompVis', later Stability's)."""
    return unet_modules(config.per_level(config.layers_per_block), config.up_block_types)


def unet_name(key: str, modules: Mapping[str, str]) -> str:
    """Return the name of a U-Net's weight in a file, by its `ldm_modules`."""
    module, rest = key, ""
    while module not in modules:
        module, dot, last = module.rpartition(".")
        rest = f".{last}{rest}"
        assert dot, f"{key} has no original name"
    return f"{UNET}{modules[module]}{rest}"


def controlnet_place(key: str, modules: Mapping[str, str], prefix: str) -> Place:
    """Return the place of a ControlNet's weight in a file, by the `ldm_modules` of the U-Net that it copies."""
    if match := re.match(r"controlnet_down_blocks\.(\d+)\.(.+)", key):
        name = f"zero_convs.{match[1]}.0.{match[2]}"
    elif key.startswith("controlnet_mid_block."):
        name = key.replace("controlnet_mid_block", "middle_block_out.0")
    elif match := re.match(r"controlnet_cond_embedding\.(conv_in|blocks\.(\d+)|conv_out)\.(.+)", key):
        place = {"conv_in": 0, "conv_out": 14}.get(match[1], 2 * int(match[2] or 0) + 2)
        name = f"input_hint_block.{place}.{match[3]}"
    else:
        name = unet_name(key, modules).removeprefix(UNET)
    return prefix + name, as_it_is


def vae_place(key: str, levels: int) -> Place:
    """Return the place of an autoencoder's weight in a file, where attention is made of 1x1 convolutions."""
    key = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", key)
    key = re.sub(r"mid_block\.resnets\.(\d+)", lambda match: f"mid.block_{int(match[1]) + 1}", key)
    for old, new in (
        (r"mid_block\.attentions\.0", "mid.attn_1"), (r"down_blocks", "down"), (r"\.resnets\.", ".block."),
        (r"(down|up)samplers\.0", r"\1sample"), (r"conv_shortcut", "nin_shortcut"), (r"conv_norm_out", "norm_out"),
        (r"group_norm", "norm"), (r"to_([qkv])", r"\1"), (r"to_out\.0", "proj_out"),
    ):  # fmt: skip
        key = re.sub(old, new, key)
    return VAE + key, Lazy.matrix if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", key) else as_it_is


def clip_place(key: str, prefix: str) -> Place:
    """Return the place of a text encoder's weight in a file that has transformers' names."""
    return prefix + bare(key), as_it_is


def open_clip_place(key: str, prefix: str) -> Place:
    """Return the place of a text encoder's weight in a file of OpenCLIP, where q, k and v are one matrix."""
    key, change = bare(key), as_it_is
    if key == "text_projection.weight":
        return f"{prefix}text_projection", Lazy.transposed
    if match := re.search(r"([qkv])_proj\.", key):
        change = partial(Lazy.part, index="qkv".index(match[1]), count=3)
    for old, new in (
        (r"embeddings\.(token_embedding)", r"\1"), (r"embeddings\.position_embedding\.weight", "positional_embedding"),
        (r"final_layer_norm", "ln_final"), (r"encoder\.layers", "transformer.resblocks"), (r"layer_norm", "ln_"),
        (r"self_attn\.[qkv]_proj\.", "attn.in_proj_"), (r"self_attn", "attn"), (r"fc1", "c_fc"), (r"fc2", "c_proj"),
    ):  # fmt: skip
        key = re.sub(old, new, key)
    return prefix + key, change
