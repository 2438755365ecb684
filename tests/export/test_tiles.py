"""A decoder's parts: its norms against PyTorch's, told what to take and asked what they found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ldmrt.export import export_bundle
from ldmrt.model import Checkpoint, load
from ldmrt.runtime.bundle import Bundle
from ldmrt.runtime.engine_ort import OrtEngine
from ldmrt.runtime.tolerances import COMPONENT

DECODER, FRONT, TILE = "vae_decoder", "vae_decoder_front", "vae_decoder_tile"
Array = NDArray[Any]
# Of the largest number: float32 sums in another order, through the whole decoder.
TOLERANCE = 2e-5


class Parts:
    """The decoder, its parts, and latents for them."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = opened = Bundle.open(bundle)
        self.decoder, self.front, self.tile = (OrtEngine(name, opened.model(name)) for name in (DECODER, FRONT, TILE))
        self.z = np.random.default_rng(0).standard_normal((2, opened.shape.channels, 10, 14), dtype=np.float32)
        self.features = self.front(latent_sample=self.z)["features"]
        _, self.groups, self.norms = next(spec.shape for spec in self.tile.inputs if spec.name == "mean")

    def drawn(self, share: Array, mean: Array, variance: Array, own: bool = False) -> dict[str, Array]:
        told = {"share": share, "mean": mean, "variance": variance, "own": np.full(1, own)}
        return self.tile(features=self.features, **told)

    def own(self) -> dict[str, Array]:
        nothing = np.zeros((len(self.z), int(self.groups), int(self.norms)))
        return self.drawn(np.ones(self.z.shape[2:]), nothing, nothing, own=True)


@pytest.fixture(scope="module")
def parts(bundle: Path) -> Parts:
    return Parts(bundle)


def relative(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_they_are_what_the_manifest_says(parts: Parts) -> None:
    for engine in (parts.front, parts.tile):
        assert engine.component in parts.bundle.graphs
        assert parts.bundle.home(engine.component) == DECODER
        assert parts.bundle.specs(engine.component) == (engine.inputs, engine.outputs)
        assert parts.bundle.weights(engine.component) == parts.bundle.weights(DECODER)


def test_with_their_own_statistics_they_are_the_decoder(parts: Parts) -> None:
    assert relative(parts.own()["sample"], parts.decoder(latent_sample=parts.z)["sample"]) < TOLERANCE


def test_the_middle_is_the_references(parts: Parts, loaded: Checkpoint) -> None:
    """Attention of one row of latents after the other against all at once."""
    seen: list[Array] = []
    middle = loaded.vae.decoder.mid_block.resnets[-1]
    middle.register_forward_hook(lambda _, given, out: seen.append(out.numpy()))
    with torch.no_grad():
        loaded.vae.decode(torch.from_numpy(parts.z))
    assert relative(parts.features, seen[0]) < TOLERANCE


def test_norms_take_what_they_are_told_and_say_what_they_found(
    parts: Parts, loaded: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against norms that take given statistics, written for PyTorch, in the reference's own decoder."""
    generator, moments, calls = np.random.default_rng(2), list[list[Array]](), 0
    kinds = (2, int(parts.groups), int(parts.norms))
    share = generator.uniform(0, 1, parts.z.shape[2:]).astype(np.float32)
    mean = generator.normal(0, 0.1, kinds).astype(np.float32)
    variance = generator.uniform(0.5, 2, kinds).astype(np.float32)
    usual, inner = functional.group_norm, 5  # two resnets and an attention

    def group_norm(x: torch.Tensor, many: int, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls <= inner:
            return usual(x, many, weight, bias, eps)
        m, v = (torch.from_numpy(one[:, :, len(moments)])[..., None, None, None] for one in (mean, variance))
        weights = functional.interpolate(torch.from_numpy(share)[None, None], x.shape[2:], mode="nearest")
        shares = (weights / weights.sum())[:, :, None]
        d = x.unflatten(1, (many, -1)) - m
        moments.append([(one * shares).sum((3, 4)).mean(2).numpy() for one in (d, d * d)])
        return (d / torch.sqrt(v + eps)).flatten(1, 2) * weight[:, None, None] + bias[:, None, None]

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(functional, "group_norm", group_norm)
        expected = loaded.vae.decode(torch.from_numpy(parts.z)).numpy()
    assert len(moments) == parts.norms
    found = parts.drawn(share, mean, variance)
    assert relative(found["sample"], expected) < TOLERANCE
    for i in range(2):
        assert relative(found[f"moment_{i + 1}"], np.stack([one[i] for one in moments], 2)) < TOLERANCE


def test_in_halves_their_statistics_are_float32(checkpoint: Path, tmp_path: Path) -> None:
    half = load(checkpoint, dtype=torch.float16)
    for _ in export_bundle(half, tmp_path / "bundle", only=("text_encoder", "unet", DECODER)):
        pass
    parts = Parts(tmp_path / "bundle")
    assert {spec.dtype for spec in (*parts.front.outputs, *parts.tile.inputs)} == {"float32"}
    own, expected = parts.own(), parts.decoder(latent_sample=parts.z)["sample"].astype(np.float32)
    assert (own["sample"].dtype, own["moment_1"].dtype) == (np.float16, np.float32)
    assert relative(own["sample"].astype(np.float32), expected) < COMPONENT["fp16"].limit
