"""Parts of a decoder and of an encoder: their norms against PyTorch's, told what to take and asked what they found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ldmrt.export.bundle_writer import export_bundle
from ldmrt.model import Autoencoder, Checkpoint, load
from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.graphs import BACK, FRONT, TILE
from ldmrt.runtime.parity.tolerances import COMPONENT

DECODER, ENCODER = "vae_decoder", "vae_encoder"
Array = NDArray[Any]
# Of the largest number: float32 sums in another order, through the whole network.
TOLERANCE = 2e-5
INNER = 5  # norms of the middle: two resnets and an attention


class Parts:
    """A decoder or an encoder, its parts, and something for them."""

    def __init__(self, bundle: Path, name: str) -> None:
        self.bundle, self.name, self.decodes = Bundle.open(bundle), name, name == DECODER
        parts = (name, name + TILE, name + (FRONT if self.decodes else BACK))
        self.network, self.tile, self.whole = (OrtEngine(part, self.bundle.model(part)) for part in parts)
        self.taken, self.made = self.network.inputs[0].name, self.network.outputs[0].name
        space = self.bundle.stage.space
        size = (space.channels, 10, 14) if self.decodes else (3, 10 * space.factor, 14 * space.factor)
        self.area = (10, 14)
        self.x = np.random.default_rng(0).standard_normal((2, *size), dtype=np.float32)
        mean = next(spec for spec in self.tile.inputs if spec.name == "mean")
        self.groups, self.norms = map(int, mean.shape[1:])

    def drawn(self, share: Array, mean: Array, variance: Array, own: bool = False) -> dict[str, Array]:
        """What the part gives that runs in tiles."""
        told = {"share": share, "mean": mean, "variance": variance, "own": np.full(1, own)}
        given = self.whole(latent_sample=self.x) if self.decodes else {"sample": self.x}
        return self.tile(**given, **told)

    def own(self) -> dict[str, Array]:
        """What both give, with the tile's own statistics."""
        nothing = np.zeros((len(self.x), self.groups, self.norms))
        drawn = self.drawn(np.ones(self.area), nothing, nothing, own=True)
        return drawn if self.decodes else {**drawn, **self.whole(features=drawn["features"])}

    def expected(self) -> Array:
        return self.network(**{self.taken: self.x})[self.made]


@pytest.fixture(scope="module", params=[DECODER, ENCODER])
def parts(bundle: Path, request: pytest.FixtureRequest) -> Parts:
    return Parts(bundle, request.param)


def relative(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_they_are_what_the_manifest_says(parts: Parts) -> None:
    for engine in (parts.tile, parts.whole):
        assert engine.component in parts.bundle.graphs
        assert parts.bundle.home(engine.component) == parts.name
        assert parts.bundle.specs(engine.component) == (engine.inputs, engine.outputs)
        assert parts.bundle.weights(engine.component) == parts.bundle.weights(parts.name)


def test_with_their_own_statistics_they_are_the_network(parts: Parts) -> None:
    assert relative(parts.own()[parts.made], parts.expected()) < TOLERANCE


def reference(vae: Autoencoder, parts: Parts) -> Array:
    with torch.no_grad():
        return (vae.decode if parts.decodes else vae.encode)(torch.from_numpy(parts.x)).numpy()


def features(vae: Autoencoder, parts: Parts) -> Array:
    """What PyTorch has between the parts."""
    seen: list[Array] = []
    if parts.decodes:
        last = vae.decoder.mid_block.resnets[-1]
        hook = last.register_forward_hook(lambda _, given, out: seen.append(out.numpy()))
    else:
        first = vae.encoder.mid_block.resnets[0]
        hook = first.register_forward_pre_hook(lambda _, given: seen.append(given[0].numpy()))
    reference(vae, parts)
    hook.remove()
    return seen[0]


def test_between_them_are_the_references_features(parts: Parts, loaded: Checkpoint) -> None:
    """Attention of one row of latents after the other against all at once."""
    found = parts.whole(latent_sample=parts.x) if parts.decodes else parts.own()
    assert relative(found["features"], features(loaded.vae, parts)) < TOLERANCE


def test_norms_take_what_they_are_told_and_say_what_they_found(
    parts: Parts, loaded: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against norms that take given statistics, written for PyTorch, in the reference's own network."""
    generator, moments, calls = np.random.default_rng(2), list[list[Array]](), 0
    kinds = (2, parts.groups, parts.norms)
    share = generator.uniform(0, 1, parts.area).astype(np.float32)
    mean = generator.normal(0, 0.1, kinds).astype(np.float32)
    variance = generator.uniform(0.5, 2, kinds).astype(np.float32)
    usual, first = functional.group_norm, INNER if parts.decodes else 0

    def group_norm(x: torch.Tensor, many: int, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if not first < calls <= first + parts.norms:
            return usual(x, many, weight, bias, eps)
        m, v = (torch.from_numpy(one[:, :, len(moments)])[..., None, None, None] for one in (mean, variance))
        weights = functional.interpolate(torch.from_numpy(share)[None, None], x.shape[2:], mode="nearest")
        shares = (weights / weights.sum())[:, :, None]
        d = x.unflatten(1, (many, -1)) - m
        moments.append([(one * shares).sum((3, 4)).mean(2).numpy() for one in (d, d * d)])
        return (d / torch.sqrt(v + eps)).flatten(1, 2) * weight[:, None, None] + bias[:, None, None]

    with monkeypatch.context() as patch:
        patch.setattr(functional, "group_norm", group_norm)
        expected = reference(loaded.vae, parts) if parts.decodes else features(loaded.vae, parts)
    assert (calls, len(moments)) == (parts.norms + INNER + (not parts.decodes), parts.norms)
    found = parts.drawn(share, mean, variance)
    assert relative(found["sample" if parts.decodes else "features"], expected) < TOLERANCE
    for i in range(2):
        assert relative(found[f"moment_{i + 1}"], np.stack([one[i] for one in moments], 2)) < TOLERANCE


@pytest.mark.slow
def test_in_halves_their_statistics_are_float32(checkpoint: Path, tmp_path: Path, shared_exports: None) -> None:
    half = load(checkpoint, dtype=torch.float16)
    for _ in export_bundle(half, tmp_path / "bundle"):
        pass
    for name in (DECODER, ENCODER):
        parts = Parts(tmp_path / "bundle", name)
        own, expected = parts.own(), parts.expected().astype(np.float32)
        told = [spec for spec in (*parts.tile.inputs, *parts.whole.outputs) if spec.name not in ("sample", parts.made)]
        assert {spec.dtype for spec in told} == {"float32"}
        assert (own[parts.made].dtype, own["moment_1"].dtype) == (np.float16, np.float32)
        assert relative(own[parts.made].astype(np.float32), expected) < COMPONENT["fp16"].limit
