"""LoRA of XL, and the names of the original code, which its files carry."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ldmrt.model import UNet, UNetConfig, load
from ldmrt.model.checkpoint.original_names import ldm_modules
from ldmrt.model.config import to_config
from ldmrt.model.lora.merge import merge, read_lora

from ...support.loras import (
    ATTENTION,
    CONVOLUTIONS,
    OTHER,
    TEXT,
    State,
    adapter,
    assert_same,
    fused,
    kohya,
    only_unet,
    parts,
    rename,
    save,
    tiny_factors,
    weights,
    whole,
)

CLIP = {"vocab_size": 100, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 16}  # fmt: skip
XL = UNetConfig(
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(8, 16, 16),
    transformer_layers_per_block=(1, 1, 2),
    norm_num_groups=4,
    cross_attention_dim=56,
    attention_head_dim=2,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=44,
)


def xl() -> tuple[dict[str, nn.Module], Any]:
    """A tiny U-Net of XL's levels with two text encoders, and diffusers' pipeline of the same weights."""
    torch.manual_seed(11)
    unet = UNet(XL)
    theirs = UNet2DConditionModel.from_config(to_config("UNet2DConditionModel", XL))
    theirs.load_state_dict(unet.state_dict())
    widths: dict[str, Any] = {"block_out_channels": (8,), "norm_num_groups": 4}
    texts = (
        CLIPTextModel(CLIPTextConfig(**CLIP)),
        CLIPTextModelWithProjection(CLIPTextConfig(**CLIP | {"hidden_size": 32, "projection_dim": 20})),
    )
    copies = type(texts[0])(texts[0].config), type(texts[1])(texts[1].config)
    for text, copy in zip(texts, copies, strict=True):
        copy.load_state_dict(text.state_dict())
    vae = AutoencoderKL(3, 3, ("DownEncoderBlock2D",), ("UpDecoderBlock2D",), **widths)
    pipeline = StableDiffusionXLPipeline(vae, *copies, None, None, theirs, DDIMScheduler())
    return {"unet": unet, "text_encoder": texts[0], "text_encoder_2": texts[1]}, pipeline


@pytest.fixture(scope="module")
def xl_factors() -> State:
    """Rank 2, in PEFT's names, for the same."""
    targets = {"unet": [*ATTENTION, *OTHER, *CONVOLUTIONS, "linear_1"], "text_encoder": TEXT,
               "text_encoder_2": [*TEXT, "text_projection"]}  # fmt: skip
    state: State = {}
    for name, network in parts(xl()[1]).items():
        state |= {f"{name}.{key}": value for key, value in adapter(network, targets[name], 2).items()}
    return state


def original(state: State) -> State:
    """kohya's names for XL, which are the original code's; the renaming is written out, and diffusers reads it."""
    blocks = {"down_blocks_0_resnets_0": "input_blocks_1_0", "down_blocks_0_resnets_1": "input_blocks_2_0",
              "down_blocks_0_downsamplers_0_conv": "input_blocks_3_0_op", "down_blocks_1_resnets_0": "input_blocks_4_0",
              "down_blocks_1_attentions_0": "input_blocks_4_1", "down_blocks_1_resnets_1": "input_blocks_5_0",
              "down_blocks_1_attentions_1": "input_blocks_5_1",
              "down_blocks_1_downsamplers_0_conv": "input_blocks_6_0_op",
              "down_blocks_2_resnets_0": "input_blocks_7_0", "down_blocks_2_attentions_0": "input_blocks_7_1",
              "down_blocks_2_resnets_1": "input_blocks_8_0", "down_blocks_2_attentions_1": "input_blocks_8_1",
              "mid_block_resnets_0": "middle_block_0", "mid_block_attentions_0": "middle_block_1",
              "mid_block_resnets_1": "middle_block_2"}  # fmt: skip
    for block in range(9):
        for part, number in (("resnets", 0), ("attentions", 1)):
            blocks[f"up_blocks_{block // 3}_{part}_{block % 3}"] = f"output_blocks_{block}_{number}"
    blocks |= {f"up_blocks_{level}_upsamplers_0": f"output_blocks_{3 * level + 2}_2" for level in (0, 1)}
    inside = {"conv1": "in_layers_2", "conv2": "out_layers_3", "time_emb_proj": "emb_layers_1",
              "conv_shortcut": "skip_connection"}  # fmt: skip
    return rename(
        state,
        *((rf"^lora_unet_{ours}(?=[_.])", f"lora_unet_{theirs}") for ours, theirs in blocks.items()),
        *((rf"(_blocks?_\d+(?:_0)?)_{ours}\.", rf"\1_{theirs}.") for ours, theirs in inside.items()),
        (r"_unet_conv_in\.", "_unet_input_blocks_0_0."),
        (r"_unet_time_embedding_linear_1\.", "_unet_time_embed_0."),
        (r"_unet_add_embedding_linear_1\.", "_unet_label_emb_0_0."),
    )


def without_sizes(state: State) -> State:
    """diffusers 0.42 reads a LoRA of add_embedding under its original name and PEFT's, but loses it under its own."""
    return {key: value for key, value in state.items() if "add_embedding" not in key}


@pytest.mark.parametrize(
    ("content", "spell"),
    [(whole, whole), (without_sizes, kohya), (whole, lambda state: original(kohya(state)))],
    ids=["PEFT", "kohya", "original"],
)
def test_xl_with_two_text_encoders(
    content: Callable[[State], State], spell: Callable[[State], State], xl_factors: State, tmp_path: Path
) -> None:
    networks, theirs = xl()
    before = weights(networks)
    file = save(spell(content(xl_factors)), tmp_path / "xl.safetensors")
    expected = fused(theirs, [(file, 0.9)])
    merged = merge(networks, [(read_lora(file), 0.9)])
    changed = assert_same(weights(networks), expected, before)
    assert len(changed) == len(content(xl_factors)) // 2
    assert {key.split(".")[0] for key in changed} == set(merged["loras"][0]["layers"]) == set(networks)


LEVELS = {
    "1.5": UNetConfig(cross_attention_dim=768),
    "XL": UNetConfig(
        down_block_types=XL.down_block_types, up_block_types=XL.up_block_types, block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, cross_attention_dim=2048,
        attention_head_dim=(5, 10, 20),
    ),
    "one layer, five levels": UNetConfig(
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 3, "DownBlock2D"), layers_per_block=1,
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3, "UpBlock2D"), block_out_channels=(32,) * 5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(LEVELS))
def test_original_names_are_those_that_diffusers_converts(name: str) -> None:
    config = LEVELS[name]
    with torch.device("meta"):
        wanted = UNet(config).state_dict()
    names = ldm_modules(config)
    renamed = {}
    for key in wanted:
        (entry,) = (module for module in names if key.startswith(f"{module}."))
        renamed[names[entry] + key.removeprefix(entry)] = key
    assert len(renamed) == len(wanted)
    plain = {**to_config("UNet2DConditionModel", config), "class_embed_type": None, "addition_embed_type": None}
    converted = convert_ldm_unet_checkpoint(
        {f"model.diffusion_model.{key}": value for key, value in renamed.items()}, plain
    )
    assert converted == {key: key for key in wanted}


def test_original_name_of_an_upsampler() -> None:
    """It follows a block's attention where there is one; diffusers finds it in either place. From the hub's files."""
    names = {key: ldm_modules(config) for key, config in LEVELS.items()}
    assert names["1.5"]["up_blocks.0.upsamplers.0.conv"] == "output_blocks.2.1.conv"
    assert names["1.5"]["up_blocks.1.upsamplers.0.conv"] == "output_blocks.5.2.conv"
    assert names["XL"]["up_blocks.0.upsamplers.0.conv"] == "output_blocks.2.2.conv"


def test_original_names_in_a_file_of_another_family(checkpoint: Path, tmp_path: Path) -> None:
    """Also where diffusers reads none: a 1.x network, dotted as ComfyUI has it and underscored."""
    unet, factors = load(checkpoint).unet, only_unet(tiny_factors(checkpoint))
    names = {f"unet.{ours}": theirs for ours, theirs in ldm_modules(unet.config).items()}
    merges = []
    for spell in (lambda name: f"diffusion_model.{name}", lambda name: "lora_unet_" + name.replace(".", "_")):
        state = {}
        for key, value in factors.items():
            module, part = key.split(".lora_")
            (entry,) = (name for name in names if f"{module}.".startswith(f"{name}."))
            spelt = spell(names[entry] + module.removeprefix(entry))
            state[f"{spelt}.lora_{'down' if part[0] == 'A' else 'up'}.weight"] = value
        merges.append(load(checkpoint).unet)
        merge({"unet": merges[-1]}, [(read_lora(save(state, tmp_path / "a.safetensors")), 1.0)])
    merge({"unet": unet}, [(read_lora(save(factors, tmp_path / "b.safetensors")), 1.0)])
    for other in merges:
        assert all(torch.equal(value, unet.state_dict()[key]) for key, value in other.state_dict().items())
