"""Files of Stable Diffusion 3 and FLUX.1 as Stability AI, Black Forest Labs and ComfyUI write them.

They are the inverse of diffusers' conversion, written without our tables; in a test diffusers converts them back.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]
COMFY = "text_encoders.{}.transformer."
SD3_TEXTS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
FLUX_TEXTS = {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"}
SD3_NAMES = (
    (r"^pos_embed\.pos_embed", "pos_embed"),
    (r"^pos_embed\.proj", "x_embedder.proj"),
    (r"^time_text_embed\.timestep_embedder\.linear_(\d)", r"t_embedder.mlp.\1"),
    (r"^time_text_embed\.text_embedder\.linear_(\d)", r"y_embedder.mlp.\1"),
    (r"mlp\.1\.", "mlp.0."),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^proj_out", "final_layer.linear"),
    (r"norm1\.linear", "x_block.adaLN_modulation.1"),
    (r"norm1_context\.linear", "context_block.adaLN_modulation.1"),
    (r"(attn2?)\.norm_([qk])\.", r"x_block.\1.ln_\2."),
    (r"attn\.norm_added_([qk])\.", r"context_block.attn.ln_\1."),
    (r"(attn2?)\.to_out\.0", r"x_block.\1.proj"),
    (r"attn\.to_add_out", "context_block.attn.proj"),
    (r"ff\.net\.0\.proj", "x_block.mlp.fc1"),
    (r"ff\.net\.2", "x_block.mlp.fc2"),
    (r"ff_context\.net\.0\.proj", "context_block.mlp.fc1"),
    (r"ff_context\.net\.2", "context_block.mlp.fc2"),
    (r"^transformer_blocks", "joint_blocks"),
)
FLUX_NAMES = (
    (r"^x_embedder", "img_in"),
    (r"^context_embedder", "txt_in"),
    (r"^time_text_embed\.timestep_embedder", "time_in"),
    (r"^time_text_embed\.text_embedder", "vector_in"),
    (r"^time_text_embed\.guidance_embedder", "guidance_in"),
    (r"_in\.linear_1", "_in.in_layer"),
    (r"_in\.linear_2", "_in.out_layer"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^proj_out", "final_layer.linear"),
    (r"^(single_transformer_blocks\.\d+)\.norm\.linear", r"\1.modulation.lin"),
    (r"^(single_transformer_blocks\.\d+)\.attn\.norm_q\.weight", r"\1.norm.query_norm.scale"),
    (r"^(single_transformer_blocks\.\d+)\.attn\.norm_k\.weight", r"\1.norm.key_norm.scale"),
    (r"^(single_transformer_blocks\.\d+)\.proj_out", r"\1.linear2"),
    (r"^single_transformer_blocks", "single_blocks"),
    (r"norm1\.linear", "img_mod.lin"),
    (r"norm1_context\.linear", "txt_mod.lin"),
    (r"attn\.norm_q\.weight", "img_attn.norm.query_norm.scale"),
    (r"attn\.norm_k\.weight", "img_attn.norm.key_norm.scale"),
    (r"attn\.norm_added_q\.weight", "txt_attn.norm.query_norm.scale"),
    (r"attn\.norm_added_k\.weight", "txt_attn.norm.key_norm.scale"),
    (r"attn\.to_out\.0", "img_attn.proj"),
    (r"attn\.to_add_out", "txt_attn.proj"),
    (r"ff\.net\.0\.proj", "img_mlp.0"),
    (r"ff\.net\.2", "img_mlp.2"),
    (r"ff_context\.net\.0\.proj", "txt_mlp.0"),
    (r"ff_context\.net\.2", "txt_mlp.2"),
    (r"^transformer_blocks", "double_blocks"),
)


def sd3_file(state: Mapping[str, Tensor]) -> State:
    """The transformer of a Stable Diffusion 3 in the names of Stability AI, without a prefix."""
    last = max(int(match[1]) for key in state if (match := re.match(r"transformer_blocks\.(\d+)", key)))
    swapped = ("norm_out.linear", f"transformer_blocks.{last}.norm1_context.linear")
    fused = {"attn.to_{}": "x_block.attn.qkv", "attn2.to_{}": "x_block.attn2.qkv"}
    fused |= {"attn.add_{}_proj": "context_block.attn.qkv"}
    return _written(state, SD3_NAMES, swapped, fused, "joint_blocks")


def flux_file(state: Mapping[str, Tensor]) -> State:
    """The transformer of a FLUX.1 in the names of Black Forest Labs, without a prefix."""
    fused = {"attn.to_{}": "img_attn.qkv", "attn.add_{}_proj": "txt_attn.qkv"}
    file = _written(state, FLUX_NAMES, ("norm_out.linear",), fused, "double_blocks")
    for key in [key for key in file if key.startswith("single_blocks.") and ".proj_mlp." in key]:
        block, kind = key.split(".proj_mlp.")
        ours = f"single_transformer_{block.removeprefix('single_')}"
        parts = [state[f"{ours}.attn.to_{x}.{kind}"] for x in "qkv"]
        file[f"{block}.linear1.{kind}"] = torch.cat([*parts, file.pop(key)])
        for x in "qkv":
            del file[f"{block}.attn.to_{x}.{kind}"]
    return file


def _written(
    state: Mapping[str, Tensor], names: tuple[tuple[str, str], ...], swapped: tuple[str, ...], fused: dict[str, str],
    blocks: str,
) -> State:  # fmt: skip
    """Rename, put q, k and v of the blocks into one matrix, and shift before scale."""
    file: State = {}
    for key, value in state.items():
        matched = re.match(r"transformer_blocks\.(\d+)\.(.+)\.(weight|bias)$", key)
        pattern = matched and next((ours for ours in fused if matched[2] in [ours.format(x) for x in "qkv"]), None)
        if matched and pattern:
            parts = [state[f"transformer_blocks.{matched[1]}.{pattern.format(x)}.{matched[3]}"] for x in "qkv"]
            file[f"{blocks}.{matched[1]}.{fused[pattern]}.{matched[3]}"] = torch.cat(parts)
            continue
        name = key
        for old, new in names:
            name = re.sub(old, new, name)
        scale_first = key.startswith(swapped)
        file[name] = torch.cat(value.chunk(2)[::-1]) if scale_first else value
    return file


def vae_file(state: Mapping[str, Tensor], levels: int) -> State:
    """An autoencoder in the names of its authors, without a prefix; attention is 1x1 convolutions."""
    file: State = {}
    for key, value in state.items():
        name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", key)
        name = re.sub(r"mid_block\.resnets\.(\d+)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("down_blocks", "down")
        name = name.replace(".resnets.", ".block.").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"(down|up)samplers\.0", r"\1sample", name).replace("conv_norm_out", "norm_out")
        name = name.replace("group_norm", "norm").replace("to_out.0", "proj_out")
        name = re.sub(r"\.to_([qkv])\.", r".\1.", name)
        file[name] = value[:, :, None, None] if ".attn_1." in name and value.ndim == 2 else value
    return file


def with_prefix(prefix: str, state: Mapping[str, Tensor]) -> State:
    """The same tensors under longer names."""
    return {prefix + key: value for key, value in state.items()}


def text_files(states: Mapping[str, Mapping[str, Tensor]], names: Mapping[str, str]) -> State:
    """The text encoders of a file for ComfyUI; CLIP's bring what no image depends on."""
    file: State = {}
    for part, name in names.items():
        if part not in states:
            continue
        state = dict(states[part])
        if name != "t5xxl":
            own = {key.removeprefix("text_model."): value for key, value in state.items()}
            state = {key if "projection.w" in key else f"text_model.{key}": value for key, value in own.items()}
            file[f"text_encoders.{name}.logit_scale"] = torch.ones(())
            width = own["final_layer_norm.weight"].shape[0]
            state.setdefault("text_projection.weight", torch.ones(width, width))
        file |= with_prefix(COMFY.format(name), state)
    return file
