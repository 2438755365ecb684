"""Every damage of a LoRA file is one error by name, and changes no weight."""

import json
from pathlib import Path

import pytest
import torch

from ldmrt.model import load
from ldmrt.model.lora.merge import Lora, merge, read_lora
from ldmrt.model.networks.ldm_bert import LDMBert
from ldmrt.runtime import LdmrtError

from ...support.loras import State, ours, rename, save, weights

LAYER = "lora_unet_conv_in"
GOOD = {f"{LAYER}.lora_down.weight": torch.ones(2, 4, 3, 3), f"{LAYER}.lora_up.weight": torch.ones(16, 2, 1, 1)}
TO_Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def pair(name: str, down: tuple[int, ...], up: tuple[int, ...]) -> State:
    return {f"{name}.lora_down.weight": torch.ones(down), f"{name}.lora_up.weight": torch.ones(up)}


def loha(columns: int = 36) -> State:
    shapes = {"w1_a": (16, 2), "w1_b": (2, columns), "w2_a": (16, 2), "w2_b": (2, columns)}
    return {f"{LAYER}.hada_{part}": torch.ones(shape) for part, shape in shapes.items()}


def lokr() -> State:
    return {f"{LAYER}.lokr_w1": torch.ones(4, 2), f"{LAYER}.lokr_w2": torch.ones(4, 2, 3, 3)}


def tucker(core: torch.Tensor) -> State:
    """A LoKr whose first factor has this core."""
    sides = {f"{LAYER}.lokr_w1_a": torch.ones(2, 4), f"{LAYER}.lokr_w1_b": torch.ones(2, 2)}
    return sides | {f"{LAYER}.lokr_t1": core, f"{LAYER}.lokr_w2": torch.ones(4, 2, 3, 3)}


def sparse(**changed: torch.Tensor | None) -> State:
    """A LoRA beside one number in its place, but for what is changed or left out."""
    parts = {"indices": torch.tensor([[0], [35]]), "values": torch.ones(1), "size": torch.tensor([16, 36])}
    state = {f"bias_{part}": value for part, value in parts.items()} | changed
    return GOOD | {f"{LAYER}.{key}": value for key, value in state.items() if value is not None}


REFUSED: dict[str, tuple[State, str]] = {
    "GLoRA": ({f"{LAYER}.a1.weight": torch.ones(2, 2)}, "unsupported GLoRA file .*; found .*a1"),
    "GLoRA of PEFT": ({"unet.conv_in.glora_A": torch.ones(2)}, "unsupported GLoRA file"),
    "OFT": ({f"{LAYER}.oft_blocks": torch.ones(2, 2, 2)}, "unsupported OFT file"),
    "OFT of PEFT": ({"unet.conv_in.oft_R.weight": torch.ones(2, 2)}, "unsupported OFT file"),
    "BOFT": ({f"{LAYER}.oft_blocks": torch.ones(2, 2, 2, 2)}, "unsupported BOFT file"),
    "BOFT of PEFT": ({"unet.conv_in.boft_R": torch.ones(2, 2, 2, 2)}, "unsupported BOFT file"),
    "IA3": (GOOD | {f"{LAYER}.on_input": torch.ones(1)}, r"unsupported \(IA\)\^3 file"),
    "IA3 of PEFT": ({"unet.conv_in.ia3_l": torch.ones(1, 4)}, r"unsupported \(IA\)\^3 file"),
    "AdaLoRA": (GOOD | {"unet.conv_in.lora_E": torch.ones(4, 1)}, "unsupported AdaLoRA file"),
    "LoHa in part": ({f"{LAYER}.hada_w1_a": torch.ones(2, 2)}, "1 of 1 layers .* lack a part of a LoHa; found .*conv"),
    "LoHa with one core": (loha() | {f"{LAYER}.hada_t1": torch.ones(2, 2, 3, 3)}, "lack a part of a LoHa"),
    "LoHa of other ranks": (loha() | {f"{LAYER}.hada_w1_a": torch.ones(16, 3)}, "do not fit each other"),
    "LoHa of two shapes": (loha() | {f"{LAYER}.hada_w1_b": torch.ones(2, 9)}, "do not fit each other"),
    "LoHa of another shape": (loha(32), r"another shape than the weight; found .*\(16, 32\) for \(16, 4, 3, 3\)"),
    "LoKr in part": ({f"{LAYER}.lokr_w1": torch.ones(2, 2)}, "lack a part of a LoKr"),
    "LoKr twice": (lokr() | {f"{LAYER}.lokr_w1_a": torch.ones(4, 2)}, "lack a part of a LoKr"),
    "LoKr whole with a core": (lokr() | {f"{LAYER}.lokr_t2": torch.ones(2, 2, 3, 3)}, "lack a part of a LoKr"),
    "LoKr of another shape": (lokr() | {f"{LAYER}.lokr_w1": torch.ones(2, 2)}, r"\(8, 4, 3, 3\) for \(16, 4, 3"),
    "LoKr of four dimensions": (lokr() | {f"{LAYER}.lokr_w1": torch.ones(4, 2, 1, 1)}, "do not fit each other"),
    "LoKr whole with a core of the first": (lokr() | {f"{LAYER}.lokr_t1": torch.ones(2, 2)}, "lack a part of a LoKr"),
    "LoKr whose first is a kernel": (tucker(torch.ones(2, 2, 3, 3)), "do not fit each other"),
    "LoKr with a core of another rank": (tucker(torch.ones(3, 2)), "do not fit each other"),
    "sparse in part": (sparse(bias_size=None), "1 of 1 layers .* lack one of bias_indices, bias_values, bias_size"),
    "sparse alone": (
        {key: value for key, value in sparse().items() if "bias_" in key}, "lack their down or their up"),
    "sparse of places below 0": (sparse(bias_indices=torch.tensor([[0], [-1]])), "do not fit each other"),
    "sparse of places outside": (sparse(bias_indices=torch.tensor([[0], [36]])), "do not fit each other"),
    "sparse of fewer values": (sparse(bias_values=torch.ones(2)), "do not fit each other"),
    "sparse of another size": (sparse(bias_size=torch.tensor([32, 18])), "do not fit each other"),
    "sparse of a size below 0": (sparse(bias_size=torch.tensor([16, -6, -6])), "do not fit each other"),
    "sparse of no size": (sparse(bias_size=torch.tensor([], dtype=torch.int64)), "do not fit each other"),
    "sparse of fractional places": (sparse(bias_indices=torch.zeros(2, 1)), "bias_indices .* no whole numbers"),
    "sparse of whole values": (sparse(bias_values=torch.tensor([1, 2])), "holds no floating-point numbers"),
    "sparse and not finite": (sparse(bias_values=torch.tensor([torch.nan])), f"{LAYER} in .* is not finite"),
    "LoHa with LoRA": (GOOD | loha(), "1 of 1 layers .* mix LoRA and LoHa"),
    "DoRA of another length": (GOOD | {f"{LAYER}.dora_scale": torch.ones(3, 1, 1, 1)}, r"magnitude of \(3, 1, 1, 1\)"),
    "DoRA alone": ({f"{LAYER}.dora_scale": torch.ones(16, 1, 1, 1)}, "lack their down or their up"),
    "difference": ({f"{LAYER}.diff": torch.ones(16, 4, 1, 1)}, "another shape than the weight"),
    "difference of a bias": ({f"{LAYER}.diff_b": torch.ones(4)}, r"a bias of \(4,\) for \(16,\)"),
    "difference of no bias": ({f"{TO_Q}.diff_b": torch.ones(32)}, "a bias of .* for a layer without one"),
    "norm": ({"lora_unet_conv_norm_out.w_norm": torch.ones(8)}, r"found lora_unet_conv_norm_out of \(8,\) for \(16,\)"),
    "whole numbers": (GOOD | {f"{LAYER}.lora_up.weight": torch.ones(16, 2, 1, 1).long()}, "no floating-point numbers"),
    "nothing": ({}, "holds no LoRA"),
    "no LoRA": (GOOD | {"<cat-toy>": torch.ones(4)}, "1 of 3 tensors of .* are no part of a LoRA; found <cat-toy>"),
    "bias alone": ({"unet.conv_in.lora_B.bias": torch.ones(16)}, "lack their down or their up; found unet.conv_in"),
    "bias of a LoHa": (loha() | {f"{LAYER}.lora_B.bias": torch.ones(16)}, "lack a part of a LoHa"),
    "too large a weight": (GOOD | {f"{LAYER}.alpha": torch.tensor(1e38)}, f"{LAYER} of a.* makes .* overflow"),
    "down alone": ({f"{LAYER}.lora_down.weight": torch.ones(2, 4, 3, 3)}, f"1 of 1 layers .* lack .*; found {LAYER}"),
    "up alone": ({f"{LAYER}.lora_up.weight": torch.ones(16, 2, 1, 1)}, "1 of 1 layers .* lack their down or their up"),
    "alpha alone": (GOOD | {f"{TO_Q}.alpha": torch.ones(())}, f"1 of 2 layers .* lack .*; found {TO_Q}"),
    "other ranks": (pair(LAYER, (2, 4, 3, 3), (16, 3, 1, 1)), "1 of 1 layers .* do not fit each other"),
    "wide up": (pair(LAYER, (2, 4, 3, 3), (16, 2, 3, 3)), "1 of 1 layers .* do not fit each other"),
    "vectors": (pair(LAYER, (2,), (16,)), "do not fit each other"),
    "many alphas": (GOOD | {f"{LAYER}.alpha": torch.ones(2)}, "do not fit each other"),
    "wide mid": (
        pair(LAYER, (2, 4, 3, 3), (16, 2, 1, 1)) | {f"{LAYER}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "do not fit"),
    "not finite": (GOOD | {f"{LAYER}.alpha": torch.tensor(float("nan"))}, f"{LAYER} in .* is not finite"),
    "infinite": (GOOD | {f"{LAYER}.lora_up.weight": torch.full((16, 2, 1, 1), torch.inf)}, f"{LAYER} .* not finite"),
    "twice": (GOOD | pair("unet.conv_in", (2, 4, 3, 3), (16, 2, 1, 1)), f"one layer twice; found .*{LAYER}"),
    "twice, by its original name": (
        GOOD | pair("lora_unet_input_blocks_0_0", (2, 4, 3, 3), (16, 2, 1, 1)), f"one layer twice; found .*{LAYER}"),
    "two spellings of a part": (GOOD | {f"{LAYER}.lora_A.weight": torch.ones(2, 4, 3, 3)}, "two tensors for the down"),
    "four unknown layers": (
        GOOD | {k: v for i in range(4) for k, v in pair(f"lora_unet_zoo_{i}", (2, 4), (4, 2)).items()},
        "4 of 5 layers of a.safetensors match no module of unet, text_encoder; found lora_unet_zoo_0, .*_2, ...\n",
    ),
    "a text encoder that is not there": (
        GOOD | pair("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", (2, 24), (24, 2)),
        "1 of 2 layers .* match no module .*; found lora_te2_.*\n  try: .* 1.x, 2.x or XL",
    ),
    "another shape": (GOOD | pair(TO_Q, (2, 24), (32, 2)), r"1 of 2 layers .*\(32, 24, 1, 1\) for \(32, 32\)"),
    "another kernel": (pair(LAYER, (2, 4, 1, 1), (16, 2, 1, 1)), "another shape than the weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused_by_name_and_nothing_changed(name: str, checkpoint: Path, tmp_path: Path) -> None:
    state, message = REFUSED[name]
    good = read_lora(save(GOOD, tmp_path / "good.safetensors"))
    networks = ours(checkpoint)
    before = weights(networks)
    with pytest.raises(LdmrtError, match=message):
        merge(networks, [(good, 1.0), (read_lora(save(state, tmp_path / "a.safetensors")), 1.0)])
    assert all(torch.equal(value, before[key]) for key, value in weights(networks).items())
    merge(networks, [(good, 1.0)])
    assert not torch.equal(weights(networks)["unet.conv_in.weight"], before["unet.conv_in.weight"])


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LdmrtError, match="missing file"):
        read_lora(tmp_path / "none.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"no tensors")
    with pytest.raises(LdmrtError, match=r"cannot read .*a\.safetensors"):
        read_lora(tmp_path / "a.safetensors")
    notes = json.dumps({"unet.lora_alpha": "four"})
    peft = rename(GOOD, (LAYER, "unet.conv_in"))
    with pytest.raises(LdmrtError, match="invalid notes on conv_in"):
        read_lora(save(peft, tmp_path / "a.safetensors", lora_adapter_metadata=notes))


def test_weight_that_is_no_number(checkpoint: Path, tmp_path: Path) -> None:
    lora = read_lora(save(GOOD, tmp_path / "a.safetensors"))
    assert isinstance(lora, Lora)
    with pytest.raises(LdmrtError, match=r"invalid weight of a\.safetensors"):
        merge({"unet": load(checkpoint).unet}, [(lora, float("inf"))])


def test_layers_for_clip_match_no_module_of_latent_diffusions_own_text_encoder(tmp_path: Path) -> None:
    encoder = LDMBert.from_config({"d_model": 8, "encoder_layers": 1, "encoder_ffn_dim": 8, "vocab_size": 9})
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    state = pair("lora_te_text_model_encoder_layers_0_self_attn_q_proj", (2, 8), (512, 2))
    lora = read_lora(save(state, tmp_path / "clip.safetensors"))
    with pytest.raises(LdmrtError, match=r"1 of 1 layers .*match no module of text_encoder; found lora_te_"):
        merge({"text_encoder": encoder}, [(lora, 1.0)])
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
