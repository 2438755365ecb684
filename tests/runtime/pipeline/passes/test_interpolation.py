"""Frames between two requests begin and end with their images, and mix what the network is told."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ldmrt.runtime
from ldmrt.runtime import InvalidRequest, Pipeline, Request
from ldmrt.runtime.pipeline.denoising.interpolation import only_pass
from ldmrt.runtime.pipeline.request.second_pass import Pass
from ldmrt.runtime.samplers.noise.variation import slerp

ASKED: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 4.0, "negative_prompt": "blurred"}

LATENTS = np.zeros((1, 4, 8, 8), np.float32)


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Iterator[Pipeline]:
    with ldmrt.runtime.open(bundle, "onnxruntime", check=False) as opened:
        yield opened


def embedding(pipeline: Pipeline, text: str) -> Any:
    return pipeline.engines["text_encoder"](input_ids=pipeline.tokenizers["tokenizer"]([text]))["last_hidden_state"]


def test_every_frame_is_a_call_with_mixed_embeddings(pipeline: Pipeline) -> None:
    """By hand: embeddings are mixed by NumPy, and latents are the noise turned between the seeds."""
    texts, seeds = ["two pears", "a red apple", "a fox"], [3, 8, 8]
    keys = [Request(text, **ASKED, seed=seed) for text, seed in zip(texts, seeds, strict=True)]
    frames = list(pipeline.interpolate(keys, 5))
    for frame, key in ((0, 0), (2, 1), (4, 2)):
        np.testing.assert_array_equal(frames[frame].pixels, pipeline.generate(keys[key]).pixels)
    noises = [pipeline.prepare(key).x.copy() for key in keys]
    for frame, first in ((1, 0), (3, 1)):
        states = [embedding(pipeline, text) for text in texts[first : first + 2]]
        x = slerp(0.5, *noises[first : first + 2]) if first == 0 else noises[first]
        mixed = states[0] + np.float32(0.5) * (states[1] - states[0])
        by_hand = pipeline(prompt_embeds=mixed, latents=x, **ASKED)
        np.testing.assert_array_equal(frames[frame].latents, by_hand.latents)
        assert np.abs(frames[frame].latents - frames[frame - 1].latents).max() > 1e-3
    assert [frame.seeds for frame in frames] == [[3], [8], [8], [8], [8]]


def test_frames_from_any_on(pipeline: Pipeline) -> None:
    keys = [Request(text, **ASKED) for text in ("two pears", "a red apple")]
    frames = [frame.pixels for frame in pipeline.interpolate(keys, 4)]
    for start in range(4):
        found = [frame.pixels for frame in pipeline.interpolate(keys, 4, start=start)]
        np.testing.assert_array_equal(found, frames[start:])
    for odd in (-1, 4, 1.5, True):
        with pytest.raises(InvalidRequest, match="start is not one of the frames; expected 0 to 3"):
            next(pipeline.interpolate(keys, 4, start=odd))  # type: ignore[arg-type]


def test_later_noise_is_turned_too(pipeline: Pipeline) -> None:
    """An ancestral sampler draws at every row: its frames change little by little as well."""
    keys = [Request("two pears", **ASKED, seed=seed, scheduler="euler_a") for seed in (1, 2)]
    frames = [frame.latents for frame in pipeline.interpolate(keys, 9)]
    steps = [np.abs(after - before).max() for before, after in pairwise(frames)]
    assert max(steps) < np.abs(frames[-1] - frames[0]).max()


def test_images_to_start_from_are_mixed(pipeline: Pipeline) -> None:
    """Also where the seeds are the same; noise that is given is turned."""
    low, high = np.random.default_rng(0).standard_normal((2, 1, 4, 8, 8), np.float32)
    asked: dict[str, Any] = {**ASKED, "strength": 0.5}
    keys = [Request("a fox", **asked, image_latents=each, latents=each) for each in (low, high)]
    middle = list(pipeline.interpolate(keys, 3))[1]
    by_hand = pipeline("a fox", **asked, image_latents=low + np.float32(0.5) * (high - low),
                       latents=slerp(0.5, low, high))  # fmt: skip
    np.testing.assert_array_equal(middle.latents, by_hand.latents)


def test_turning_keeps_the_length_of_noise() -> None:
    low, high = np.random.default_rng(0).standard_normal((2, 3, 4, 8, 8), np.float32)
    for share in (0.25, 0.5):
        turned = slerp(share, low, high)
        assert turned.std() == pytest.approx(1, abs=0.05)  # linear mixing at 0.5 has 0.71
    np.testing.assert_array_equal(slerp(0.0, low, high), low)
    np.testing.assert_allclose(slerp(0.3, low, low * 2), 1.3 * low, rtol=3e-7)  # parallel: a rounding of float32


@pytest.mark.parametrize(
    ("requests", "frames", "says"),
    [
        ([Request("a")], 4, "nothing to interpolate between"),
        ([Request("a"), Request("b"), Request("c")], 2, "too few frames; expected at least 3"),
        ([Request("a"), Request("b", num_images_per_prompt=2)], 4, "a request of several images"),
        ([Request("a"), Request("b", hires=2)], 4, "hires, a mask and outpaint cannot be interpolated"),
        ([Request("a"), Request("b", num_inference_steps=3)], 4, "different settings .* the same num_inference_steps"),
        ([Request("a"), Request("b", image_latents=LATENTS)], 4, "different settings .* the same image_latents"),
        ([Request("a", width=16), Request("b", width=32)], 4, "different settings .* the same width"),
        (
            [Request("a", image=np.zeros((16, side, 3), np.uint8)) for side in (16, 32)], 4,
            "images of different sizes cannot be interpolated; expected 16x16; found 32x16",
        ),
        (
            [Request(text, prompt_syntax="a1111") for text in ("a", "a [b:c:0.5]")], 4,
            "different numbers of parts or chunks",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(pipeline: Pipeline, requests: list[Request], frames: int, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        list(pipeline.interpolate(requests, frames))


def test_several_stages_are_refused(pipeline: Pipeline) -> None:
    """The first stage of a cascade alone would be drawn without a word."""
    passes = [(pipeline, Pass(Request(prompt))) for prompt in ("a", "b")]
    with pytest.raises(InvalidRequest, match="several stages cannot be interpolated"):
        only_pass(passes)
    assert only_pass(passes[:1]).prompt == "a"
