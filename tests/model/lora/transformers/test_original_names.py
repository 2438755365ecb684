"""LoRAs in the original names, whose q, k and v are one layer, against diffusers' converters of LoRAs and checkpoints.

diffusers' converters know FLUX.1 in its published width alone. Rows are therefore widened to it before a conversion, by
zeros behind those of each of q, k, v and MLP, and narrowed after it.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from torch import Tensor, nn

from ldmrt.model.lora.merge import merge, read_lora

from ....support.families.original_transformers import flux_file, sd3_file
from ....support.loras import State, assert_same, fused, save, weights
from .conftest import FAMILIES, layers_of, ours, theirs

Layers = dict[str, tuple[Tensor, Tensor]]
RANK, WEIGHT = 3, 0.8
WIDTHS = [3072, 3072, 3072, 4 * 3072]  # of FLUX.1's q, k, v and MLP, which are constants in diffusers
OWN = [32, 32, 32, 128]


def widened(rows: Tensor) -> Tensor:
    parts = zip(rows.split(OWN), WIDTHS, strict=True)
    return torch.cat([torch.cat([part, part.new_zeros(width - len(part), *part.shape[1:])]) for part, width in parts])


def narrowed(state: State, rows: dict[str, int]) -> State:
    """Without the rows that were added."""
    return {key: value[: rows.get(key, len(value))].clone() for key, value in state.items()}


def converted(family: str, state: State, transformer: nn.Module) -> State:
    """A checkpoint in original names in diffusers', by diffusers' own converter; it takes every name away."""
    if family == "sd3":
        state = {**state, "pos_embed": torch.zeros(1)}
        found = convert_sd3_transformer_checkpoint_to_diffusers(state)
        del found["pos_embed.pos_embed"]
        assert not state
        return found
    state = {key: widened(value) if ".linear1." in key else value for key, value in state.items()}
    found = convert_flux_transformer_checkpoint_to_diffusers(state)
    assert not state
    return narrowed(found, {key: len(value) for key, value in transformer.named_parameters()})


def original_weights(family: str, transformer: nn.Module) -> State:
    """Zeros for every weight and bias of the transformer, as the original code names them."""
    zeros = {key: torch.zeros_like(value) for key, value in transformer.named_parameters()}
    return (sd3_file if family == "sd3" else flux_file)(zeros)


def random_layers(family: str, transformer: nn.Module) -> Layers:
    """A down and an up for every matrix and convolution, by its original name."""
    torch.manual_seed(12)
    every = {key.removesuffix(".weight"): zeros for key, zeros in original_weights(family, transformer).items()}
    return {
        name: (torch.randn(RANK, *zeros.shape[1:]) * 0.2, torch.randn(len(zeros), RANK) * 0.2)
        for name, zeros in every.items() if zeros.ndim > 1
    }  # fmt: skip


def product(down: Tensor, up: Tensor) -> Tensor:
    return (up @ down.flatten(1)).reshape(len(up), *down.shape[1:])


def with_ends(prefix: str, down: str, up: str, *, dotted: bool) -> Callable[[Layers], State]:
    def spell(layers: Layers) -> State:
        state = {}
        for name, factors in layers.items():
            spelt = prefix + (name if dotted else name.replace(".", "_"))
            state[f"{spelt}.{down}"], state[f"{spelt}.{up}"] = factors
        return state

    return spell


KOHYA, PEFT = ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")
SPELLINGS = {
    "kohya": with_ends("lora_unet_", *KOHYA, dotted=False),
    "ComfyUI": with_ends("diffusion_model.", *KOHYA, dotted=True),
    "ComfyUI, PEFT's parts": with_ends("diffusion_model.", *PEFT, dotted=True),
    "fal": with_ends("base_model.model.", *PEFT, dotted=True),
    "the original code's": with_ends("", *PEFT, dotted=True),
}


@pytest.mark.parametrize("spelling", list(SPELLINGS))
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:lora.* alpha is taken to be the rank")
def test_every_layer_is_where_diffusers_converts_it(family: str, spelling: str, tmp_path: Path) -> None:
    """Each weight of the transformer changes by what the converter of whole checkpoints makes of the products."""
    networks = ours(family)
    before, transformer = weights(networks), networks["transformer"]
    layers = random_layers(family, transformer)
    file = save(SPELLINGS[spelling](layers), tmp_path / "a.safetensors")
    merged = merge(networks, [(read_lora(file), WEIGHT)])
    products = {f"{name}.weight": product(*factors) for name, factors in layers.items()}
    deltas = converted(family, original_weights(family, transformer) | products, transformer)
    assert deltas.keys() == dict(transformer.named_parameters()).keys()
    expected = before | {f"transformer.{key}": before[f"transformer.{key}"] + WEIGHT * v for key, v in deltas.items()}
    changed = assert_same(weights(networks), expected, before)
    assert changed == {f"transformer.{name}.weight" for name in layers_of(transformer)}
    assert merged["loras"][0]["layers"] == {"transformer": len(changed)}


def test_kohyas_file_as_diffusers_loads_it(tmp_path: Path) -> None:
    """With an alpha for each layer, and a CLIP; the last layer keeps its rank, whose alpha diffusers 0.42 loses."""
    networks = ours("flux")
    before, layers = weights(networks), random_layers("flux", networks["transformer"])
    state = SPELLINGS["kohya"](layers)
    clip = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    rows, columns = before["text_encoder.encoder.layers.0.mlp.fc1.weight"].shape
    state |= {f"{clip}.lora_down.weight": torch.randn(RANK, columns), f"{clip}.lora_up.weight": torch.randn(rows, RANK)}
    generator = torch.Generator().manual_seed(1)
    for key in [key for key in state if key.endswith(".lora_up.weight") and "final_layer" not in key]:
        state[key.replace("lora_up.weight", "alpha")] = torch.rand((), generator=generator) * 8
    file = save(state, tmp_path / "a.safetensors")  # first: diffusers scales some in place
    wide = {key: widened(value) if key.endswith("linear1.lora_up.weight") else value for key, value in state.items()}
    own = {f"{key.removesuffix('.weight')}.lora_B.weight": len(value) for key, value in before.items()}
    found = FluxPipeline.lora_state_dict(wide)
    # diffusers forgets the prefix of layers outside the blocks
    found = {key if key.startswith(("transformer.", "text_encoder.")) else f"transformer.{key}": value
             for key, value in found.items()}  # fmt: skip
    plain = save(narrowed(found, own), tmp_path / "plain.safetensors")
    merge(networks, [(read_lora(file), WEIGHT)])
    expected = before | fused(theirs("flux"), [(plain, WEIGHT)])
    changed = assert_same(weights(networks), expected, before)
    assert len(changed) == len(layers_of(networks["transformer"])) + 1


def test_xlabs_file_as_diffusers_loads_it(tmp_path: Path) -> None:
    """Its processors have layers for the image's and the text's q, k and v, and for what comes behind them."""
    torch.manual_seed(13)
    networks = ours("flux")
    before, state = weights(networks), {}
    sizes = {"double_blocks": {"qkv_lora1": (32, 96), "proj_lora1": (32, 32), "qkv_lora2": (32, 96),
                               "proj_lora2": (32, 32)},
             "single_blocks": {"qkv_lora": (32, 96), "proj_lora": (160, 32)}}  # fmt: skip
    for blocks, layers in sizes.items():
        for layer, (columns, rows) in layers.items():
            for number in range(2):
                name = f"{blocks}.{number}.processor.{layer}"
                state[f"{name}.down.weight"] = torch.randn(RANK, columns) * 0.2
                state[f"{name}.up.weight"] = torch.randn(rows, RANK) * 0.2
    file = save(state, tmp_path / "lora.safetensors")
    merge(networks, [(read_lora(file), WEIGHT)])
    changed = assert_same(weights(networks), before | fused(theirs("flux"), [(file, WEIGHT)]), before)
    assert len(changed) == 2 * (3 + 1 + 3 + 1) + 2 * (3 + 1)


def test_other_kinds_of_layers_and_biases_are_divided_too(tmp_path: Path) -> None:
    """LoKr, DoRA and differences of weights and biases, computed for q, k and v in one and then divided by hand."""
    torch.manual_seed(14)
    networks = ours("flux")
    before = weights(networks)
    state: State = {}
    expected = dict(before)
    block = "transformer.transformer_blocks.0.attn."
    image, text = ([f"{block}{name}" for name in names] for names in (
        ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")))  # fmt: skip
    joined = {names[0]: torch.cat([before[f"{name}.weight"] for name in names]) for names in (image, text)}

    def put(names: list[str], weight: Tensor) -> None:
        for name, part in zip(names, weight.chunk(3), strict=True):
            expected[f"{name}.weight"] = part

    w1, w2 = torch.randn(3, 4), torch.randn(32, 8)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    state |= {f"{name}.lokr_w1": w1, f"{name}.lokr_w2": w2}
    put(image, joined[image[0]] + WEIGHT * torch.kron(w1, w2))
    down, up, norms = torch.randn(RANK, 32), torch.randn(96, RANK), torch.rand(96, 1) + 1
    name = "lora_unet_double_blocks_0_txt_attn_qkv"
    state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.dora_scale": norms}
    whole = joined[text[0]] + up @ down
    with_norms = whole * norms / whole.norm(dim=1, keepdim=True)
    put(text, whole + WEIGHT * (with_norms - whole))  # as LyCORIS has it
    bias = torch.randn(32 * 3 + 128)
    state["lora_unet_single_blocks_1_linear1.diff_b"] = bias
    single = "transformer.single_transformer_blocks.1."
    for name, part in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), bias.split(OWN), strict=True):
        expected[f"{single}{name}.bias"] = before[f"{single}{name}.bias"] + WEIGHT * part
    shift, scale = torch.randn(2, 32)
    state["lora_unet_final_layer_adaLN_modulation_1.diff_b"] = torch.cat([shift, scale])
    out = "transformer.norm_out.linear.bias"
    expected[out] = before[out] + WEIGHT * torch.cat([scale, shift])
    merge(networks, [(read_lora(save(state, tmp_path / "a.safetensors")), WEIGHT)])
    assert len(assert_same(weights(networks), expected, before)) == 3 + 3 + 4 + 1


@pytest.mark.parametrize(
    ("family", "prefix", "part"),
    [
        ("flux", "lora_te3_", "text_encoder_2"),
        ("flux", "lora_te2_", "text_encoder_2"),
        ("flux", "text_encoders.t5xxl.transformer.", "text_encoder_2"),
        ("sd3", "lora_te3_", "text_encoder_3"),
        ("sd3", "text_encoders.t5xxl.transformer.", "text_encoder_3"),
    ],
)
def test_t5_is_the_third_text_encoder_or_flux_second(family: str, prefix: str, part: str, tmp_path: Path) -> None:
    networks = ours(family)
    before, module = weights(networks), "encoder.block.1.layer.0.SelfAttention.q"
    down, up = torch.randn(RANK, 64), torch.randn(32, RANK)
    name = prefix + (module if prefix.endswith(".") else module.replace(".", "_"))
    file = save({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, tmp_path / "a.safetensors")
    merge(networks, [(read_lora(file), WEIGHT)])
    key = f"{part}.{module}.weight"
    assert assert_same(weights(networks), before | {key: before[key] + WEIGHT * up @ down}, before) == {key}
