"""A LoRA that is for another model than a transformer, or in part for none of its layers, is one error by name."""

from pathlib import Path

import pytest
import torch

from ldmrt.model import load
from ldmrt.model.lora.merge import merge, read_lora
from ldmrt.runtime import LdmrtError

from ....support.loras import State, save, weights
from .conftest import ours


def pair(name: str, columns: int, rows: int) -> State:
    return {f"{name}.lora_down.weight": torch.ones(2, columns), f"{name}.lora_up.weight": torch.ones(rows, 2)}


QKV = "lora_unet_double_blocks_0_img_attn_qkv"
XL = pair("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 2048, 640)
GOOD = pair(QKV, 32, 96)
CONTROL = {"double_blocks.0.img_attn.qkv.lora_A.weight": torch.ones(2, 32),
           "double_blocks.0.img_attn.qkv.lora_B.weight": torch.ones(96, 2),
           "double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(16)}  # fmt: skip
REFUSED: dict[str, tuple[str, State, str]] = {
    "XL": ("flux", XL, "a.safetensors is for another family of models; expected a LoRA of FLUX.1; found one of "
                       "Stable Diffusion 1.x, 2.x or XL\n  try: a LoRA that was trained on the checkpoint's family"),
    "FLUX.1": ("sd3", GOOD, "is for another family .* of Stable Diffusion 3 or 3.5; found one of FLUX.1"),
    "FLUX.1, PEFT": ("sd3", pair("transformer.single_transformer_blocks.0.proj_mlp", 32, 128), "found one of FLUX.1"),
    "Stable Diffusion 3": ("flux", pair("lora_unet_joint_blocks_0_x_block_attn_qkv", 32, 96), "of Stable Diffusion 3"),
    "Stable Diffusion 3.5": ("flux", pair("transformer.transformer_blocks.0.attn2.to_q", 32, 32), "Diffusion 3 or 3.5"),
    "another width": ("sd3", pair("transformer.transformer_blocks.0.attn.to_q", 48, 48),
                      r"another shape than the weight; found .*\(48, 48, 1, 1\) for \(32, 32\)"),
    "rows of q alone": ("flux", pair(QKV, 32, 32), r"another shape than .*qkv of \(32, 32, 1, 1\) for \(96, 32\)"),
    "another depth": ("flux", pair("lora_unet_double_blocks_2_img_attn_qkv", 32, 96), "1 of 1 .* match no module"),
    "q, and q with k and v": ("flux", GOOD | pair("transformer.transformer_blocks.0.attn.to_k", 32, 32),
                              "one layer twice; found .*qkv and transformer.*to_k"),
    "norms of shared columns": ("flux", GOOD | {f"{QKV}.dora_scale": torch.ones(1, 32)},
                                "1 of 1 layers .* have norms of columns that several modules share; found .*qkv"),
    "too few norms": ("flux", GOOD | {f"{QKV}.dora_scale": torch.ones(32, 1)}, r"magnitude of \(32, 1\) for \(96"),
    "a bias of q alone": ("flux", {f"{QKV}.diff_b": torch.ones(32)}, r"a bias of \(32,\) for \(96,\)"),
    "a T5 that was left out": ("no T5", pair("lora_te3_encoder_block_0_layer_0_SelfAttention_q", 64, 32),
                               "a.safetensors changes T5, which this model lacks; .*\n.*without --without-t5"),
    "control LoRA": ("flux", CONTROL, "unsupported control LoRA .*a.safetensors; found .*query_norm.*\n.*FLUX.1-Canny"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused_by_name_and_nothing_changed(name: str, tmp_path: Path) -> None:
    family, state, message = REFUSED[name]
    networks = ours("sd3" if family == "no T5" else family)
    if family == "no T5":
        del networks["text_encoder_3"]
    before = weights(networks)
    file = save(state, tmp_path / "a.safetensors")
    with pytest.raises(LdmrtError, match=message):
        merge(networks, [(read_lora(file), 1.0)])
    assert all(torch.equal(value, before[key]) for key, value in weights(networks).items())


@pytest.mark.parametrize("state", [GOOD, pair("transformer.single_transformer_blocks.0.attn.to_q", 32, 32)])
def test_a_transformers_is_refused_for_a_unet(state: State, checkpoint: Path, tmp_path: Path) -> None:
    file = save(state, tmp_path / "a.safetensors")
    with pytest.raises(LdmrtError, match=r"a LoRA of Stable Diffusion 1.x, 2.x or XL; found one of FLUX.1"):
        merge(load(checkpoint).networks, [(read_lora(file), 1.0)])
