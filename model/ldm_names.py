"""Where CompVis' and Stability AI's programs put each weight: from a network's own name to the one in their files."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from .weights import Lazy, Place, as_it_is, bare

UNET, VAE = "model.diffusion_model.", "first_stage_model."

_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip


def unet_name(key: str, config: Mapping[str, Any]) -> str:
    """The name of a U-Net's weight in a file. Its blocks are numbered through, each a resnet and perhaps a transformer;
    a change of size is a block of its own on the way down, and the end of one on the way up.
    """
    module, leaf = key.rsplit(".", 1)
    if module in _ENDS:
        return f"{UNET}{_ENDS[module]}.{leaf}"
    side, *words = key.split(".")
    level = int(words.pop(0)) if side != "mid_block" else 0
    kind, index, *inner = words
    if kind == "resnets":
        inner[0] = _RESNET[inner[0]]
    layers, transformer, rest = config["layers_per_block"] + 1, kind == "attentions", ".".join(inner)
    if side == "mid_block":
        return f"{UNET}middle_block.{1 if transformer else 2 * int(index)}.{rest}"
    if kind == "downsamplers":
        return f"{UNET}input_blocks.{(level + 1) * layers}.0.op.{leaf}"
    if kind == "upsamplers":
        last = 2 if config["up_block_types"][level] == "CrossAttnUpBlock2D" else 1
        return f"{UNET}output_blocks.{(level + 1) * layers - 1}.{last}.{rest}"
    place = level * layers + int(index)
    block = f"input_blocks.{place + 1}" if side == "down_blocks" else f"output_blocks.{place}"
    return f"{UNET}{block}.{transformer:d}.{rest}"


def vae_place(key: str, levels: int) -> Place:
    """The place of an autoencoder's weight in a file, where attention is made of convolutions of one pixel."""
    key = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", key)
    key = re.sub(r"mid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}", key)
    for old, new in (
        (r"mid_block\.attentions\.0", "mid.attn_1"), (r"down_blocks", "down"), (r"\.resnets\.", ".block."),
        (r"(down|up)samplers\.0", r"\1sample"), (r"conv_shortcut", "nin_shortcut"), (r"conv_norm_out", "norm_out"),
        (r"group_norm", "norm"), (r"to_([qkv])", r"\1"), (r"to_out\.0", "proj_out"),
    ):  # fmt: skip
        key = re.sub(old, new, key)
    return VAE + key, Lazy.matrix if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", key) else as_it_is


def clip_place(key: str, prefix: str) -> Place:
    """The place of a text encoder's weight in a file that has transformers' names."""
    return prefix + bare(key), as_it_is


def open_clip_place(key: str, prefix: str) -> Place:
    """The place of a text encoder's weight in a file of OpenCLIP, where q, k and v are one matrix."""
    key, change = bare(key), as_it_is
    if key == "text_projection.weight":
        return f"{prefix}text_projection", Lazy.transposed
    if found := re.search(r"([qkv])_proj\.", key):
        change = partial(Lazy.part, index="qkv".index(found[1]), count=3)
    for old, new in (
        (r"embeddings\.(token_embedding)", r"\1"), (r"embeddings\.position_embedding\.weight", "positional_embedding"),
        (r"final_layer_norm", "ln_final"), (r"encoder\.layers", "transformer.resblocks"), (r"layer_norm", "ln_"),
        (r"self_attn\.[qkv]_proj\.", "attn.in_proj_"), (r"self_attn", "attn"), (r"fc1", "c_fc"), (r"fc2", "c_proj"),
    ):  # fmt: skip
        key = re.sub(old, new, key)
    return prefix + key, change
