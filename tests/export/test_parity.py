"""Parity finds what is wrong, and names it."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ldmrt.export import Difference, compare
from ldmrt.export.components import COMPONENTS
from ldmrt.export.parity import component_difference, psnr
from ldmrt.model import Checkpoint, load
from ldmrt.model.engine import TorchEngine
from ldmrt.runtime import LdmrtError

PROMPT = "a red apple, noto style, blue background"


@pytest.fixture
def loaded(checkpoint: Path) -> Checkpoint:
    return load(checkpoint)


def test_clean_bundle_passes(bundle: Path, loaded: Checkpoint) -> None:
    rows = list(compare(bundle, loaded, PROMPT))
    assert [row.what for row in rows] == [*COMPONENTS, "picture"]
    assert all(row.within for row in rows)
    # two libraries take sums in another order: a difference of exactly zero would be a thing compared with itself
    assert all(0 < row.value < 1e-5 for row in rows[:-1])
    assert [row.unit for row in rows] == ["of the largest value"] * len(COMPONENTS) + ["dB"]


def weight(network: str, key: str) -> Callable[[Checkpoint], Any]:
    """One number of one tensor, a hundredth more."""
    return lambda c: getattr(c, network).state_dict()[key].view(-1)[0].add_(0.01)


def eps(network: str, path: str, value: float) -> Callable[[Checkpoint], Any]:
    return lambda c: setattr(getattr(c, network).get_submodule(path), "eps", value)


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
}
MISSED = {  # faults that are real and below the tolerances
    "small eps of the U-Net": (eps("unet", "down_blocks.0.resnets.0.norm2", 1e-6), "unet"),
    "small eps of the decoder": (eps("vae", "decoder.mid_block.resnets.0.norm1", 1e-5), "vae_decoder"),
    "scaling factor, by a hundredth": (scale(1.01), "picture"),
}


@pytest.mark.parametrize("name", [*FAULTS, *(pytest.param(name) for name in MISSED)])
@torch.no_grad()
def test_planted_fault_is_caught_and_named(name: str, bundle: Path, loaded: Checkpoint) -> None:
    plant, component = (FAULTS | MISSED)[name]
    plant(loaded)
    caught = [row.what for row in compare(bundle, loaded, PROMPT) if not row.within]
    assert caught
    assert caught[0] == component
    assert set(caught) <= {component, "picture"}


def test_changed_file_is_refused_by_name(bundle: Path, loaded: Checkpoint, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    data = copy / "unet" / "model.onnx_data"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(LdmrtError, match=r"unet/model\.onnx_data was changed"):
        next(compare(copy, loaded, PROMPT))


@pytest.mark.parametrize(
    ("value", "unit", "within"),
    [
        (0.5, "of the largest value", True),
        (1.0, "of the largest value", True),
        (1.1, "of the largest value", False),
        (math.nan, "of the largest value", False),
        (math.inf, "of the largest value", False),
        (1.1, "dB", True),
        (math.inf, "dB", True),
        (0.9, "dB", False),
        (math.nan, "dB", False),
    ],
)
def test_within(value: float, unit: str, within: bool) -> None:
    assert Difference("what", value, 1.0, unit).within is within


@pytest.mark.parametrize(
    "spoil",
    [
        lambda out: np.where(out == out.max(), np.nan, out),
        lambda out: np.where(out == out.max(), np.inf, out),
        pytest.param(lambda out: out[None]),
    ],
    ids=["nan", "infinity", "one dimension more"],
)
def test_output_that_cannot_be_compared_differs_without_end(
    spoil: Callable[[NDArray], NDArray], loaded: Checkpoint
) -> None:
    component = COMPONENTS["vae_decoder"]
    reference = component.engine(loaded)

    class Spoilt(TorchEngine):
        def __call__(self, **arrays: NDArray) -> dict[str, NDArray]:
            return {name: spoil(out) for name, out in super().__call__(**arrays).items()}

    engine: Any = Spoilt("spoilt", reference.module, reference.inputs, reference.outputs)
    assert component_difference(component, loaded, component.engine(loaded)) == 0.0  # type: ignore[arg-type]
    assert component_difference(component, loaded, engine) == math.inf


def test_psnr_equals_a_slow_twin() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 2, 3, 4, 3), dtype=np.uint8)
    total = sum((int(x) - int(y)) ** 2 for x, y in zip(a.ravel(), b.ravel(), strict=True))
    assert psnr(a, b) == pytest.approx(10 * math.log10(255**2 / (total / a.size)))
    assert psnr(a, a) == math.inf
