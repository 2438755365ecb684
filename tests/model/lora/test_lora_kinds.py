"""LoHa, LoKr, DoRA, whole differences and biases against PEFT and LyCORIS, whose own code made the files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from lycoris.functional.general import rebuild_tucker
from lycoris.functional.lokr import make_kron
from lycoris.modules.full import FullModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from lycoris.utils import extract_diff
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ldmrt.model import UNet, load
from ldmrt.model.lora.merge import merge, read_lora

from ...support.loras import ATTENTION, CONVOLUTIONS, OTHER, State, assert_same, fused, pipeline, save, weights

LAYERS = [*ATTENTION, *OTHER, *CONVOLUTIONS]
WEIGHT = 0.7

PEFT: dict[str, Any] = {
    "LoHa": LoHaConfig(r=2, alpha=3, target_modules=LAYERS, init_weights=False),
    "LoHa, Tucker's form": LoHaConfig(
        r=2, alpha=3, target_modules=LAYERS, init_weights=False, use_effective_conv2d=True,
    ),
    "LoHa of several alphas": LoHaConfig(
        r=2, alpha=3, target_modules=LAYERS, init_weights=False, alpha_pattern={"to_q": 5, "ff.net.*proj": 7},
    ),
    "LoKr": LoKrConfig(r=2, alpha=3, target_modules=LAYERS, init_weights=False),
    "LoKr, Tucker's form": LoKrConfig(
        r=1, alpha=3, target_modules=LAYERS, init_weights=False, use_effective_conv2d=True,
    ),
    "LoKr of two products": LoKrConfig(
        r=1, alpha=3, target_modules=LAYERS, init_weights=False, decompose_both=True, decompose_factor=4,
    ),
    "LoKr of whole factors": LoKrConfig(
        r=32, alpha=3, target_modules=LAYERS, init_weights=False, rank_pattern={"to_q": 16},
    ),
    "DoRA": LoraConfig(r=2, lora_alpha=3, target_modules=LAYERS, init_lora_weights=False, use_dora=True),
    "DoRA, rank-stabilised": LoraConfig(
        r=2, lora_alpha=3, target_modules=ATTENTION, init_lora_weights=False, use_dora=True, use_rslora=True,
    ),
    "LoRA with biases": LoraConfig(
        r=2, lora_alpha=3, target_modules=["to_out.0", *CONVOLUTIONS], init_lora_weights=False, lora_bias=True,
    ),
}  # fmt: skip


def unsettled(network: nn.Module) -> None:
    """Random numbers for all that an adapter begins with as zeros, ones or the weights' norms."""
    for name, parameter in network.named_parameters():
        if ".lora_" in name or ".hada_" in name or ".lokr_" in name:
            parameter.data = torch.randn_like(parameter) * 0.3 + ("magnitude" in name)


@pytest.mark.parametrize("name", list(PEFT))
def test_folder_that_peft_saved(name: str, checkpoint: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet")
    ours = load(checkpoint).unet
    before = weights({"unet": ours})
    adapted = get_peft_model(theirs, PEFT[name])
    unsettled(adapted)
    adapted.save_pretrained(tmp_path)
    merged = merge({"unet": ours}, [(read_lora(tmp_path), WEIGHT)])
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_scale("default", WEIGHT)
    expected = weights({"unet": adapted.merge_and_unload()})
    changed = assert_same(weights({"unet": ours}), expected, before)
    layers = {key.rpartition(".")[0] for key in changed}
    assert len(layers) == merged["loras"][0]["layers"]["unet"] > 10
    assert any(key.endswith(".bias") for key in changed) == ("biases" in name)


def test_two_files_of_which_one_has_norms(checkpoint: Path, tmp_path: Path) -> None:
    """DoRA's norms are of the weight without the other file, in PEFT and here."""
    torch.manual_seed(4)
    files = []
    for name, options in (("plain", {}), ("dora", {"use_dora": True})):
        trained = pipeline(checkpoint).unet
        trained.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=ATTENTION, init_lora_weights=False, **options))
        unsettled(trained)
        state = {
            f"unet.{key.replace('.default', '')}": value.data
            for key, value in trained.named_parameters()
            if ".lora_" in key
        }
        state = {key.replace("magnitude_vector.weight", "magnitude_vector"): value for key, value in state.items()}
        files.append((save(state, tmp_path / f"{name}.safetensors"), WEIGHT))
    ours = load(checkpoint).unet
    before = weights({"unet": ours})
    merge({"unet": ours}, [(read_lora(path), weight) for path, weight in files])
    expected = {key: value for key, value in fused(pipeline(checkpoint), files).items() if key.startswith("unet.")}
    assert len(assert_same(weights({"unet": ours}), expected, before)) > 10


LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"  # (32, 24)
CONVOLUTION = "down_blocks.0.resnets.0.conv1"  # (16, 16, 3, 3)
LARGER = "down_blocks.1.resnets.0.conv1"  # (32, 16, 3, 3)
POINTWISE = "down_blocks.1.resnets.0.conv_shortcut"  # (32, 16, 1, 1)
GROUPS, LAYER_NORM = "conv_norm_out", "mid_block.attentions.0.transformer_blocks.0.norm2"
OPTIONS: dict[str, Any] = {"lora_dim": 2, "alpha": 3.0}
RANKS: dict[str, Any] = {"lora_dim": 3, "alpha": 2.0}
TWO_PRODUCTS: dict[str, Any] = {"lora_dim": 1, "alpha": 3.0, "decompose_both": True}

LYCORIS: dict[str, tuple[str, Callable[[str, nn.Module], Any]]] = {
    "LoCon": (CONVOLUTION, lambda n, m: LoConModule(n, m, WEIGHT, **OPTIONS)),
    "LoCon, Tucker's form": (CONVOLUTION, lambda n, m: LoConModule(n, m, WEIGHT, **OPTIONS, use_tucker=True)),
    "LoCon, pointwise": (POINTWISE, lambda n, m: LoConModule(n, m, WEIGHT, **OPTIONS)),
    "LoCon with norms": (LINEAR, lambda n, m: LoConModule(n, m, WEIGHT, **OPTIONS, weight_decompose=True)),
    "LoCon with norms, convolution": (
        CONVOLUTION, lambda n, m: LoConModule(n, m, WEIGHT, **OPTIONS, weight_decompose=True)),
    "LoCon with norms of columns": (
        CONVOLUTION, lambda n, m: LoConModule(n, m, WEIGHT, **OPTIONS, weight_decompose=True, wd_on_out=False)),
    "LoHa": (LINEAR, lambda n, m: LohaModule(n, m, WEIGHT, **OPTIONS)),
    "LoHa, convolution": (CONVOLUTION, lambda n, m: LohaModule(n, m, WEIGHT, **OPTIONS)),
    "LoHa, Tucker's form": (CONVOLUTION, lambda n, m: LohaModule(n, m, WEIGHT, **OPTIONS, use_tucker=True)),
    "LoHa with norms": (LINEAR, lambda n, m: LohaModule(n, m, WEIGHT, **OPTIONS, weight_decompose=True)),
    "LoHa with norms of columns": (
        CONVOLUTION, lambda n, m: LohaModule(n, m, WEIGHT, **OPTIONS, weight_decompose=True, wd_on_out=False)),
    "LoKr": (LINEAR, lambda n, m: LokrModule(n, m, WEIGHT, **OPTIONS)),
    "LoKr, convolution": (CONVOLUTION, lambda n, m: LokrModule(n, m, WEIGHT, lora_dim=1, alpha=3.0)),
    "LoKr, Tucker's form": (CONVOLUTION, lambda n, m: LokrModule(n, m, WEIGHT, lora_dim=1, alpha=3.0, use_tucker=True)),
    "LoKr, Tucker's form of more ranks": (LARGER, lambda n, m: LokrModule(n, m, WEIGHT, **RANKS, use_tucker=True)),
    "LoKr, Tucker's form and two products": (
        LARGER, lambda n, m: LokrModule(n, m, WEIGHT, **TWO_PRODUCTS, use_tucker=True)),
    "LoKr, Tucker's form and norms": (
        LARGER, lambda n, m: LokrModule(n, m, WEIGHT, **RANKS, use_tucker=True, weight_decompose=True)),
    "LoKr of two products": (
        LINEAR, lambda n, m: LokrModule(n, m, WEIGHT, lora_dim=1, alpha=3.0, decompose_both=True, factor=4)),
    "LoKr of whole factors": (LINEAR, lambda n, m: LokrModule(n, m, WEIGHT, **OPTIONS, full_matrix=True)),
    "LoKr, unbalanced": (LINEAR, lambda n, m: LokrModule(n, m, WEIGHT, **OPTIONS, unbalanced_factorization=True)),
    "LoKr with norms": (POINTWISE, lambda n, m: LokrModule(n, m, WEIGHT, **OPTIONS, weight_decompose=True)),
    "LoKr with norms of columns": (
        LINEAR, lambda n, m: LokrModule(n, m, WEIGHT, **OPTIONS, weight_decompose=True, wd_on_out=False)),
    "difference": (CONVOLUTION, lambda n, m: FullModule(n, m, WEIGHT)),
    "difference without a bias": (LINEAR, lambda n, m: FullModule(n, m, WEIGHT)),
    "group norm": (GROUPS, lambda n, m: NormModule(n, m, WEIGHT)),
    "layer norm": (LAYER_NORM, lambda n, m: NormModule(n, m, WEIGHT)),
}  # fmt: skip


PREFIXES = ["lora_unet_", "lycoris_", "lycoris_unet_", "model.diffusion_model.", "diffusion_model.", "unet.", ""]


@pytest.mark.parametrize(
    ("name", "prefix"),
    [*((name, "lora_unet_") for name in LYCORIS), *(("LoKr", prefix) for prefix in PREFIXES[1:])],
)
@torch.no_grad()
def test_layer_as_lycoris_computes_it(name: str, prefix: str, unet: UNet, tmp_path: Path) -> None:
    """The outputs of its forward pass, which is what was trained: its own merge applies alpha to LoHa twice."""
    torch.manual_seed(6)
    place, make = LYCORIS[name]
    layer = unet.get_submodule(place)
    theirs = make("layer", layer).eval()
    for parameter in theirs.parameters():
        parameter.data = torch.rand_like(parameter) + 0.5
    state = theirs.custom_state_dict() or dict(theirs.named_parameters())
    if isinstance(theirs, FullModule):
        state = {"diff": theirs.weight} | ({} if theirs.bias is None else {"diff_b": theirs.bias})
    module = place if "." in prefix else place.replace(".", "_")
    file = save({f"{prefix}{module}.{key}": value for key, value in state.items()}, tmp_path / "a.safetensors")
    x = inputs(layer)
    before, expected = layer(x), theirs(x)
    merge({"unet": unet}, [(read_lora(file), WEIGHT)])
    # float32: sums of up to 16 * 9 products in another order, and norms by another formula
    assert (layer(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (before - expected).abs().max() > 0.05 * expected.abs().max()


@pytest.mark.parametrize("kernel", [(), (1, 1)])
@pytest.mark.parametrize("tucker", [False, True])
def test_first_factor_in_tuckers_form(tucker: bool, kernel: tuple[int, ...], unet: UNet, tmp_path: Path) -> None:
    """LyCORIS reads `lokr_t1` beside `lokr_t2` and has no option that trains it: its arithmetic is the oracle."""
    torch.manual_seed(8)
    first = {"t1": torch.randn(2, 2, *kernel), "w1_a": torch.randn(2, 8), "w1_b": torch.randn(2, 4)}
    second = {"t2": torch.randn(3, 3, 3, 3), "w2_a": torch.randn(3, 4), "w2_b": torch.randn(3, 4)}
    whole = {"w2": torch.randn(4, 4, 3, 3)}
    layer, state = unet.get_submodule(LARGER), {**first, **(second if tucker else whole), "alpha": torch.tensor(2.0)}
    names = {key: key if key == "alpha" else f"lokr_{key}" for key in state}
    file = save({f"unet.{LARGER}.{names[key]}": value for key, value in state.items()}, tmp_path / "a.safetensors")
    core = first["t1"].reshape(2, 2)
    factors = rebuild_tucker(core, first["w1_a"], first["w1_b"]), whole["w2"]
    if tucker:
        factors = factors[0], rebuild_tucker(*second.values())
    expected = layer.weight + make_kron(*factors, WEIGHT * 2.0 / (3 if tucker else 2))
    merge({"unet": unet}, [(read_lora(file), WEIGHT)])
    # float32: sums of up to 9 products in another order
    assert (layer.weight - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_extracted_difference_with_what_the_low_rank_lacks(
    sparsity: float, checkpoint: Path, unet: UNet, tmp_path: Path
) -> None:
    """LyCORIS' extraction of a tuned model: whole at a sparsity of 0, and else all but the smallest numbers."""
    torch.manual_seed(9)
    base, tuned = pipeline(checkpoint).unet, pipeline(checkpoint).unet
    changed = (LINEAR, CONVOLUTION, POINTWISE)
    for name in changed:
        tuned.get_submodule(name).weight.data += torch.randn_like(tuned.get_submodule(name).weight)
    state = extract_diff(
        [], [], base, tuned, linear_mode_param=2, conv_mode_param=2, use_bias=True, sparsity=sparsity, small_conv=False
    )  # fmt: skip
    assert sum("bias_values" in key for key in state) == len(changed)
    expected = {name: tuned.get_submodule(name).weight.detach() for name in changed}
    layers = {name: f"lora_unet_{name.replace('.', '_')}" for name in changed}
    before = weights({"unet": unet})
    merged = merge({"unet": unet}, [(read_lora(save(state, tmp_path / "a.safetensors")), 1.0)])
    assert merged["loras"][0]["layers"] == {"unet": len(changed)}
    for name, layer in layers.items():
        found, values = unet.get_submodule(name).weight.detach(), state[f"{layer}.bias_values"]
        lost = values.abs().min() if sparsity else 0.0  # what is left out is smaller than what is kept
        # float16 has 11 bits, of factors and of values, which are below 8
        assert (found - expected[name]).abs().max() <= lost + 8 * 2**-10
        sparse = torch.sparse_coo_tensor(
            state[f"{layer}.bias_indices"].long(),
            values.float(),
            tuple(state[f"{layer}.bias_size"]),
            check_invariants=True,
        )
        up, down = (state[f"{layer}.lora_{part}.weight"].float() for part in ("up", "down"))
        delta = (up.flatten(1) @ down.flatten(1) + sparse.to_dense()).reshape(found.shape)
        assert torch.allclose(found, before[f"unet.{name}.weight"] + delta, atol=1e-6)


@pytest.fixture
def unet(checkpoint: Path) -> UNet:
    return load(checkpoint).unet


def inputs(layer: nn.Module) -> Tensor:
    if isinstance(layer, nn.Linear):
        return torch.randn(5, layer.in_features)
    if isinstance(layer, nn.LayerNorm):
        return torch.randn(5, *layer.normalized_shape)
    return torch.randn(2, layer.in_channels if isinstance(layer, nn.Conv2d) else layer.num_channels, 8, 8)


def test_two_rows_that_are_zero_stay_so(unet: UNet, tmp_path: Path) -> None:
    """A norm of nothing has no direction: the weight stays zero, and does not become NaN."""
    state: State = {
        "unet.conv_out.lora_down.weight": torch.zeros(2, 16, 3, 3),
        "unet.conv_out.lora_up.weight": torch.zeros(4, 2, 1, 1),
        "unet.conv_out.dora_scale": torch.ones(4, 1, 1, 1),
    }
    unet.conv_out.weight.data[1:3] = 0
    merge({"unet": unet}, [(read_lora(save(state, tmp_path / "a.safetensors")), 1.0)])
    assert unet.conv_out.weight[1:3].abs().max() == 0
    assert (unet.conv_out.weight[0].norm() - 1).abs() < 1e-6
