"""LoRAs of FLUX.1 and Stable Diffusion 3 in every spelling against diffusers, weight by weight."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.training_utils import _collate_lora_metadata

from ldmrt.model.lora.merge import merge, read_lora

from ....support.loras import TEXT, State, adapter, assert_same, fused, rename, save, weights
from .conftest import FAMILIES, layers_of, ours, theirs

WEIGHT = 0.8
Factors = Callable[[str], State]


def transformer(state: State) -> State:
    return {key.removeprefix("transformer."): v for key, v in state.items() if key.startswith("transformer.")}


def flat(state: State, prefix: str) -> State:
    """The transformer's layers alone, with "_" for "." as LyCORIS and OneTrainer write them."""
    found = {}
    for key, value in transformer(state).items():
        layer, part = key.split(".lora_")
        found[f"{prefix}{layer.replace('.', '_')}.lora_{'down' if part[0] == 'A' else 'up'}.weight"] = value
    return found


def whole(state: State) -> State:
    return state


# How a file spells what it holds, and whether diffusers reads that; if not, it reads the same in PEFT's names.
SPELLINGS: dict[str, tuple[Callable[[State], State], bool]] = {
    "PEFT in diffusers, ai-toolkit": (whole, True),
    "PEFT with an adapter's name": (lambda s: rename(s, (r"(lora_[AB])\.", r"\1.default.")), False),
    "PEFT, the transformer alone": (
        lambda s: {f"base_model.model.{key}": value for key, value in transformer(s).items()}, False),
    "OneTrainer": (lambda s: flat(s, "lora_transformer_"), False),
    "LyCORIS": (lambda s: flat(s, "lycoris_"), False),
    "the transformer's own names": (transformer, False),
}  # fmt: skip


@pytest.mark.parametrize("name", list(SPELLINGS))
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:lora.* alpha is taken to be the rank")
def test_every_spelling_adds_the_same(name: str, family: str, factors_of: Factors, tmp_path: Path) -> None:
    spell, readable = SPELLINGS[name]
    content = spell(factors_of(family))
    networks = ours(family)
    before = weights(networks)
    file = save(content, tmp_path / "file.safetensors")
    plain = factors_of(family) if len(content) == len(factors_of(family)) else {
        key: value for key, value in factors_of(family).items() if key.startswith("transformer.")
    }  # fmt: skip
    merged = merge(networks, [(read_lora(file), WEIGHT)])
    read = file if readable else save(plain, tmp_path / "plain.safetensors")
    expected = before | fused(theirs(family), [(read, WEIGHT)])
    changed = assert_same(weights(networks), expected, before)
    assert len(changed) == len(content) // 2 == sum(merged["loras"][0]["layers"].values())


@pytest.mark.slow(minutes=0.05)
@pytest.mark.parametrize("family", FAMILIES)
def test_file_of_save_lora_weights(family: str, tmp_path: Path) -> None:
    """It keeps alpha and its exceptions in the file's notes, and may hold DoRA's norms."""
    torch.manual_seed(8)
    trained = theirs(family)
    exceptions = {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_k": 9, "transformer_blocks.0.attn.to_v": 1.5}}
    targets = [name for name in layers_of(trained.transformer) if "pos_embed" not in name]
    layers = adapter(trained.transformer, targets, 4, lora_alpha=6, use_dora=True, **exceptions)
    layers = {key: value + ("magnitude" in key) for key, value in layers.items()}
    text = adapter(trained.text_encoder, TEXT, 4, lora_alpha=3, use_rslora=True)
    notes = _collate_lora_metadata({"transformer": trained.transformer, "text_encoder": trained.text_encoder})
    trained.save_lora_weights(tmp_path, layers, text, **notes)
    file, networks = tmp_path / "pytorch_lora_weights.safetensors", ours(family)
    before = weights(networks)
    merge(networks, [(read_lora(file), 1.0)])
    changed = assert_same(weights(networks), before | fused(theirs(family), [(file, 1.0)]), before)
    assert len(changed) == len(targets) + len(text) // 2
