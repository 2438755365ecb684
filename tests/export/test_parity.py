"""Parity finds what is wrong, and names it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldmrt.export import compare
from ldmrt.model import Checkpoint, load

PROMPT = "a red apple, noto style, blue background"

ALL = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]


@pytest.fixture
def loaded(checkpoint: Path) -> Checkpoint:
    return load(checkpoint)


def test_clean_bundle_passes(bundle: Path, loaded: Checkpoint) -> None:
    rows = list(compare(bundle, loaded, PROMPT))
    assert [row.what for row in rows] == ["origin", *ALL, "picture"]
    assert all(row.within for row in rows)
    # two libraries take sums in another order: a difference of exactly zero would be a thing compared with itself
    assert all(0 < row.value < 1e-5 for row in rows[1:-1])
    assert [row.unit for row in rows] == ["facts", *["of the largest value"] * len(ALL), "dB"]


def weight(network: str, key: str) -> Callable[[Checkpoint], Any]:
    """One number of one tensor, a hundredth more."""
    return lambda c: c.networks[network].state_dict()[key].view(-1)[0].add_(0.01)


def eps(network: str, path: str, value: float) -> Callable[[Checkpoint], Any]:
    return lambda c: setattr(c.networks[network].get_submodule(path), "eps", value)


def scale(factor: float) -> Callable[[Checkpoint], Any]:
    return lambda c: object.__setattr__(c.vae.config, "scaling_factor", factor * c.vae.config.scaling_factor)


FAULTS: dict[str, tuple[Callable[[Checkpoint], Any], str]] = {
    "weight of the U-Net": (weight("unet", "mid_block.resnets.0.conv1.weight"), "unet"),
    "weight of the text encoder": (weight("text_encoder", "encoder.layers.0.mlp.fc1.weight"), "text_encoder"),
    "weight of the decoder": (weight("vae", "decoder.mid_block.resnets.0.conv1.weight"), "vae_decoder"),
    "weight of the encoder": (weight("vae", "encoder.mid_block.resnets.0.conv1.weight"), "vae_encoder"),
    "eps of the U-Net": (eps("unet", "down_blocks.0.resnets.0.norm2", 1e-3), "unet"),
    "eps of the decoder": (eps("vae", "decoder.mid_block.attentions.0.group_norm", 1e-3), "vae_decoder"),
    "scaling factor": (scale(1.1), "picture"),
    "schedule": (lambda c: c.scheduler.update(beta_end=0.02), "picture"),
    "prediction": (lambda c: c.scheduler.update(prediction_type="v_prediction"), "picture"),
    "scaling factor, by a hundredth": (scale(1.01), "picture"),
    "small eps of the U-Net": (eps("unet", "down_blocks.0.resnets.0.norm2", 1e-6), "unet"),
}


@pytest.mark.parametrize("name", list(FAULTS))
@torch.no_grad()
def test_planted_fault_is_caught_and_named(name: str, bundle: Path, loaded: Checkpoint) -> None:
    plant, component = FAULTS[name]
    plant(loaded)
    caught = {row.what: row for row in compare(bundle, loaded, PROMPT) if not row.within}
    origin = caught.pop("origin", None)
    assert (origin is None) == ("eps" in name)  # a module's eps is no weight, and the config still says the old one
    if component == "picture":
        assert origin is not None
        assert ("scheduler" if name in ("schedule", "prediction") else "config of vae_decoder") in origin.detail
        assert set(caught) <= {"picture"}
    else:
        assert component in (origin.detail if origin else component)
        assert component in caught
        assert set(caught) <= {component, "picture"}
