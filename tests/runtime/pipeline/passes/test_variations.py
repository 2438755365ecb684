"""Variations turn the first noise towards another seed's, by the formula of AUTOMATIC1111's web UI."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ldmrt.runtime
from ldmrt.runtime import InvalidRequest, Pipeline, Request
from ldmrt.runtime.samplers.noise.counter import FIRST, noise
from ldmrt.runtime.samplers.noise.variation import varied

PROMPT = "two pears"
ASKED: dict[str, Any] = {"num_inference_steps": 2, "width": 16, "height": 16}


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Iterator[Pipeline]:
    with ldmrt.runtime.open(bundle, "onnxruntime", check=False) as opened:
        yield opened


@pytest.mark.oracle
@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 64, 48), (16, 2, 3)])
@pytest.mark.parametrize("strength", [0.0, 0.05, 0.5, 1.0])
def test_the_formula_is_the_web_uis(shape: tuple[int, ...], strength: float) -> None:
    import torch

    def slerp(val: float, low: Any, high: Any) -> Any:  # modules/rng.py of version 1.10
        low_norm = low / torch.norm(low, dim=1, keepdim=True)
        high_norm = high / torch.norm(high, dim=1, keepdim=True)
        dot = (low_norm * high_norm).sum(1)
        if dot.mean() > 0.9995:
            return low * val + high * (1 - val)
        omega = torch.acos(dot)
        so = torch.sin(omega)
        first = (torch.sin((1.0 - val) * omega) / so).unsqueeze(1) * low
        return first + (torch.sin(val * omega) / so).unsqueeze(1) * high

    low, high = noise([1], FIRST, shape), noise([2], FIRST, shape)
    # Two float32 acos, sin and quotients, each right to some 1e-7; columns of two numbers are near to parallel, where
    # the quotient of sines is that of small numbers.
    tolerance = 2e-6 if shape[1] > 2 else 2e-4
    for other in (high, low, low * np.float32(1.5)):
        expected = slerp(strength, torch.from_numpy(low[0]), torch.from_numpy(other[0])).numpy()
        assert np.abs(varied(strength, low, other)[0] - expected).max() <= tolerance * np.abs(expected).max()


def test_one_row_of_latents_stays_finite() -> None:
    """Columns of one number are parallel: there the web UI divides by zero."""
    low, high = noise([1], FIRST, (4, 1, 8)), noise([2], FIRST, (4, 1, 8))
    assert np.isfinite(varied(0.5, low, high)).all()
    np.testing.assert_array_equal(varied(0.0, low, high), low)


@pytest.mark.parametrize("kind", ["ldmrt", "torch-cpu", "a1111"])
def test_the_first_noise_is_varied(pipeline: Pipeline, kind: str) -> None:
    """One seed, and variation seeds that count up: by hand it is `latents=` of the mixed noise."""
    request = Request(
        PROMPT, **ASKED, num_images_per_prompt=2, seed=7, variation_seed=20, variation_strength=0.3, noise=kind
    )
    assert (request.seeds, request.variation_seeds) == ([7, 7], [20, 21])
    drawn = {seed: pipeline.prepare(Request(PROMPT, **ASKED, seed=seed, noise=kind)).x for seed in (7, 20, 21)}
    expected = [varied(0.3, drawn[7], drawn[seed])[0] for seed in (20, 21)]
    np.testing.assert_array_equal(pipeline.prepare(request).x, np.stack(expected))
    result = pipeline.generate(request)
    assert result.seeds == [7, 7]
    by_hand = pipeline(PROMPT, **ASKED, num_images_per_prompt=2, seed=[7, 7], latents=np.stack(expected), noise=kind)
    np.testing.assert_array_equal(result.latents, by_hand.latents)  # DDIM draws no other noise


def test_a_strength_of_0_draws_the_images_of_the_seeds(pipeline: Pipeline) -> None:
    """As in the web UI, whose `subseed_strength` of 0 lets the seed count up."""
    plain = Request(PROMPT, **ASKED, num_images_per_prompt=2, seed=7)
    request = Request(PROMPT, **ASKED, num_images_per_prompt=2, seed=7, variation_seed=20, variation_strength=0)
    assert (request, request.seeds, request.variation_seeds) == (plain, [7, 8], [])
    np.testing.assert_array_equal(pipeline.generate(request).pixels, pipeline.generate(plain).pixels)


def test_parts_and_a_second_pass_are_varied_too(pipeline: Pipeline) -> None:
    asked: dict[str, Any] = {**ASKED, "seed": 7, "variation_seed": 20, "variation_strength": 0.3}
    whole = Request(PROMPT, **asked, num_images_per_prompt=3)
    assert [(part.seeds, part.variation_seeds) for part in whole.parts(2)] == [([7, 7], [20, 21]), ([7], [22])]
    large, plain = (pipeline(PROMPT, **each, hires=2).latents for each in (asked, {**ASKED, "seed": 7}))
    first = pipeline(PROMPT, **asked).latents
    then = pipeline(PROMPT, **{**asked, "width": 32, "height": 32}, strength=0.5,
                    image_latents=np.stack([_doubled(one) for one in first])).latents  # fmt: skip
    np.testing.assert_array_equal(large, then)
    assert np.abs(large - plain).max() > 0.1


def _doubled(latents: np.ndarray) -> np.ndarray:
    from ldmrt.runtime.images.resizing import resize

    return resize(latents[None], (latents.shape[1] * 2, latents.shape[2] * 2), "bilinear")[0]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"variation_strength": 0.3}, "variation_strength without variation_seed"),
        ({"variation_seed": -3, "variation_strength": 0.3}, "invalid variation_seed"),
        ({"variation_seed": [3, 4], "variation_strength": 0.3}, "one variation_seed per image"),
        ({"variation_seed": 3, "variation_strength": 1.3}, "invalid variation_strength"),
        (
            {"variation_seed": 2**64 - 1, "variation_strength": 0.3, "num_images_per_prompt": 2},
            "invalid variation_seed",
        ),
        (
            {"variation_seed": 3, "variation_strength": 0.3, "latents": np.zeros((1, 4, 8, 8), np.float32)},
            "variation_seed cannot be combined with latents",
        ),
    ],
)
def test_what_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        Request(PROMPT, **fields)
