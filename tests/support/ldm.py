"""The families of single files made small, and files as CompVis' and Stability AI's programs write them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ldmrt.model.checkpoint.families import FAMILIES, OPEN_CLIP, Family
from ldmrt.model.checkpoint.original_names import ldm_modules, open_clip_place, unet_name, vae_place
from ldmrt.model.networks.unet import UNetConfig

from .families import LENGTH
from .pipelines import randomise

NAMES = {family.name: family for family in FAMILIES}

# What training leaves beside the networks.
LEFT_OVER = {
    "model_ema.decay": torch.ones(()),
    "model_ema.diffusion_modelinput_blocks00weight": torch.ones(2),
    "betas": torch.ones(2),
    "alphas_cumprod": torch.ones(2),
    "sqrt_one_minus_alphas_cumprod": torch.ones(2),
    "posterior_mean_coef1": torch.ones(2),
    "cond_stage_model.model.logit_scale": torch.ones(()),
    "conditioner.embedders.1.model.logit_scale": torch.ones(()),
    "denoiser.sigmas": torch.ones(2),
    "model.alphas_cumprod": torch.ones(2),
    "log_sigmas": torch.ones(2),
    "iteration": torch.ones((), dtype=torch.int64),
    "global_step": torch.ones((), dtype=torch.int64),
}


def small(family: Family, vocabulary: int) -> Family:
    """A family with as many blocks, all of them narrow and not as deep."""
    widths, texts = {768: 16, 1024: 24, 1280: 32}, {}
    layers = {12: 2, 23: 23, 32: 2}  # diffusers knows the names of the 24th, which goes unused, by heart
    for part, text in family.texts.items():
        change = {
            "hidden_size": widths[text.config["hidden_size"]],
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "projection_dim": 12,
            "num_hidden_layers": layers[text.config["num_hidden_layers"]],
            "max_position_embeddings": LENGTH,
            "vocab_size": vocabulary,
        }
        texts[part] = replace(text, config=text.config | change)
    levels = len(family.unet["block_out_channels"])
    unet = family.unet | {
        "block_out_channels": [8, 16, 32, 32][:levels],
        "norm_num_groups": 4,
        "attention_head_dim": 2 if family.unet["attention_head_dim"] == 8 else [1, 2, 4, 4][:levels],
        "cross_attention_dim": sum(text.config["hidden_size"] for text in texts.values()),
        "sample_size": 8,
    }
    if levels == 3:
        unet["transformer_layers_per_block"] = [1, 1, 2]
    if "addition_time_embed_dim" in unet:
        numbers = 5 if family.index.get("requires_aesthetics_score") else 6
        unet |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 8 * numbers + 12}
    vae = family.vae | {"block_out_channels": [4, 8, 12, 12], "norm_num_groups": 4, "sample_size": 64}
    return replace(family, unet=unet, vae=vae, texts=texts)


def networks(family: Family, device: str = "cpu") -> dict[str, Any]:
    """diffusers' and transformers' networks of a family, with random weights where they have any."""
    import transformers
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(0)
    with torch.device(device):
        made: dict[str, Any] = {"unet": UNet2DConditionModel(**family.unet), "vae": AutoencoderKL(**family.vae)}
        for part, text in family.texts.items():
            made[part] = getattr(transformers, text.kind)(transformers.CLIPTextConfig(**text.config))
    return made if device == "meta" else {part: randomise(network, 1) for part, network in made.items()}


def as_written(family: Family, made: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The content of a family's file, by the inverse of our reading. Whether the names are right, diffusers tells."""
    file: dict[str, Tensor] = {}
    modules = ldm_modules(UNetConfig.read(family.unet))
    for key, value in made["unet"].state_dict().items():
        file[unet_name(key, modules)] = value
    for key, value in made["vae"].state_dict().items():
        name, _ = vae_place(key, len(family.vae["block_out_channels"]))
        attention = ".attn_1." in name and name.endswith(".weight") and ".norm." not in name
        file[name] = value[:, :, None, None] if attention else value
    for part, text in family.texts.items():
        state = made[part].state_dict()
        for key, value in state.items():
            if text.names == OPEN_CLIP:
                name, _ = open_clip_place(key, text.prefix)
                kind = key.rpartition(".")[2]
                if ".in_proj_" in name:
                    module = key.rpartition(".self_attn.")[0]
                    file[name] = torch.cat([state[f"{module}.self_attn.{x}_proj.{kind}"] for x in "qkv"])
                else:
                    file[name] = value.T.contiguous() if name.endswith("text_projection") else value
            else:
                file[f"{text.prefix}text_model.{key.removeprefix('text_model.')}"] = value
        if text.names == OPEN_CLIP and text.kind == "CLIPTextModel":
            file |= _beyond(text.prefix, file, text.config)
    return file


def _beyond(prefix: str, file: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A last layer and a projection, which Stable Diffusion 2 does not read."""
    last, block = config["num_hidden_layers"], f"{prefix}transformer.resblocks."
    first = {key: value for key, value in file.items() if key.startswith(f"{block}0.")}
    more = {key.replace(f"{block}0.", f"{block}{last}."): torch.full_like(value, 9.0) for key, value in first.items()}
    width = config["hidden_size"]
    return {
        **more,
        f"{prefix}text_projection": torch.full((width, width), 9.0, device=next(iter(file.values())).device),
    }
