"""The pipeline on the tiny bundle: pictures, seeds, sizes, errors."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import ldmrt.runtime
from ldmrt.runtime import SCHEDULERS, LdmrtError, Pipeline, Request
from ldmrt.runtime.samplers.noise.counter import FIRST, noise

PROMPT = "a red apple, noto style, blue background"
LATENT = (4, 8, 8)


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Iterator[Pipeline]:
    opened = ldmrt.runtime.open(bundle)
    yield opened
    opened.close()


def test_result(pipeline: Pipeline) -> None:
    result = pipeline(PROMPT, num_images_per_prompt=2, num_inference_steps=2, seed=5)
    assert (result.pixels.shape, result.pixels.dtype) == ((2, 16, 16, 3), np.uint8)
    assert (result.latents.shape, result.latents.dtype) == ((2, *LATENT), np.float32)
    assert result.seeds == [5, 6]
    assert set(result.seconds) == {"latents", "decode"}
    assert result.pixels.std() > 1  # random weights, yet no flat picture


def test_same_seed_same_bytes(bundle: Path, pipeline: Pipeline) -> None:
    first, again = (pipeline(PROMPT, num_inference_steps=3, seed=9, scheduler="euler_a") for _ in range(2))
    assert first.pixels.tobytes() == again.pixels.tobytes()
    assert first.latents.tobytes() == again.latents.tobytes()
    program = (
        "import hashlib, sys, ldmrt.runtime\n"
        "made = ldmrt.runtime.open(sys.argv[1])(sys.argv[2], num_inference_steps=3, seed=9, scheduler='euler_a')\n"
        "print(hashlib.sha256(made.pixels.tobytes() + made.latents.tobytes()).hexdigest())\n"
    )
    ran = subprocess.run([sys.executable, "-c", program, bundle, PROMPT], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == hashlib.sha256(first.pixels.tobytes() + first.latents.tobytes()).hexdigest()
    assert (
        pipeline(PROMPT, num_inference_steps=3, seed=10, scheduler="euler_a").pixels.tobytes() != first.pixels.tobytes()
    )


@pytest.mark.parametrize("scheduler", ["ddim", "euler_a"])
def test_picture_of_a_batch_is_its_single_twin(pipeline: Pipeline, scheduler: str) -> None:
    prompts = ["a penguin", PROMPT, "two pears", "a"]
    batch = pipeline(prompts, num_inference_steps=3, seed=[3, 1, 4, 1], scheduler=scheduler)
    for i, (prompt, seed) in enumerate(zip(prompts, batch.seeds, strict=True)):
        alone = pipeline(prompt, num_inference_steps=3, seed=seed, scheduler=scheduler)
        # ONNX Runtime may order its sums by batch size: rounding, which can tip one grey level
        assert np.abs(batch.pixels[i].astype(int) - alone.pixels[0]).max() <= 1
        np.testing.assert_allclose(batch.latents[i], alone.latents[0], atol=1e-4 * np.abs(alone.latents).max())


def test_prompts_with_count(pipeline: Pipeline) -> None:
    both = pipeline(["a penguin", "two pears"], num_images_per_prompt=2, num_inference_steps=2, seed=3)
    pears = pipeline("two pears", num_images_per_prompt=2, num_inference_steps=2, seed=5)
    assert both.seeds == [3, 4, 5, 6]
    assert np.abs(both.pixels[2:].astype(int) - pears.pixels).max() <= 1  # as above


def test_latents_stand_in_for_the_seed(pipeline: Pipeline) -> None:
    own = pipeline(PROMPT, num_inference_steps=2, seed=7)
    given = pipeline(PROMPT, num_inference_steps=2, seed=1, latents=noise([7], FIRST, LATENT))
    assert given.pixels.tobytes() == own.pixels.tobytes()


def test_request_and_its_fields_are_the_same_call(pipeline: Pipeline) -> None:
    request = Request(PROMPT, num_inference_steps=2, guidance_scale=2.0, seed=4)
    assert (
        pipeline(request).pixels.tobytes()
        == pipeline(PROMPT, num_inference_steps=2, guidance_scale=2.0, seed=4).pixels.tobytes()
    )


def test_options_beside_a_request_replace_its_fields(pipeline: Pipeline) -> None:
    images = pipeline(Request(PROMPT, seed=3), num_inference_steps=2).pixels
    assert images.tobytes() == pipeline(PROMPT, seed=3, num_inference_steps=2).pixels.tobytes()


@pytest.mark.parametrize(("width", "height"), [(24, 16), (16, 32), (18, 10)])
def test_not_square(pipeline: Pipeline, width: int, height: int) -> None:
    assert pipeline(PROMPT, num_inference_steps=1, width=width, height=height).pixels.shape == (1, height, width, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"negative_prompt": "two pears"},
        {"guidance_scale": 1.0},
        {"num_inference_steps": 3},
        {"seed": 1},
        {"prompt": "two pears"},
    ],
)
def test_option_changes_the_latents(pipeline: Pipeline, change: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 2}
    assert np.abs(pipeline(**plain).latents - pipeline(**{**plain, **change}).latents).max() > 1e-3


def test_negative_prompt_counts_for_nothing_without_guidance(pipeline: Pipeline) -> None:
    one, other = (
        pipeline(PROMPT, num_inference_steps=2, guidance_scale=1.0, negative_prompt=text).pixels
        for text in ("", "two pears")
    )
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if not name.startswith(("score", "flow"))])
def test_scheduler_by_name(pipeline: Pipeline, scheduler: str) -> None:
    found: NDArray[Any] = pipeline(PROMPT, num_inference_steps=4, scheduler=scheduler).latents
    own = pipeline(PROMPT, num_inference_steps=4).latents
    assert (found.tobytes() == own.tobytes()) == (scheduler == "ddim")  # the bundle's own


def test_sampler_of_another_kind_of_network_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(LdmrtError, match="ScoreSdeVeScheduler cannot replace DDIMScheduler"):
        pipeline(PROMPT, num_inference_steps=4, scheduler="score_ve")


def test_walk_can_be_stopped(pipeline: Pipeline) -> None:
    walked = pipeline.steps(Request(PROMPT, num_inference_steps=5, seed=2))
    rows = [next(walked) for _ in range(2)]
    assert [(state.row, state.rows) for state in rows] == [(0, 5), (1, 5)]
    walked.close()
    assert list(walked) == []
    *_, last = pipeline.steps(Request(PROMPT, num_inference_steps=5, seed=2))
    assert last.row == 4
    result = pipeline(PROMPT, num_inference_steps=5, seed=2)
    assert result.latents.tobytes() == last.x.tobytes()
    assert result.pixels.tobytes() == pipeline.decode(last.x).tobytes()


@pytest.mark.parametrize(
    ("options", "where", "words"),
    [
        ({"stepz": 3}, "request", "unknown argument 'stepz', did you mean 'num_inference_steps'?"),
        ({"steps": 3}, "request", "unknown argument 'steps', did you mean 'num_inference_steps'?"),
        ({"guidance": 3}, "request", "unknown argument 'guidance', did you mean 'guidance_scale'?"),
        ({"scheduler": "heron"}, "scheduler", "unknown scheduler 'heron', did you mean 'heun'?; expected ddim"),
        ({"guidance_rescale": 1.5}, "request", "invalid guidance_rescale; expected 0 to 1; found 1.5"),
        ({"num_inference_steps": 1001}, "scheduler", "invalid number of steps; expected 1 to 1000; found 1001"),
        ({"eta": 2.0}, "request", "invalid eta; expected 0 to 1; found 2.0"),
        ({"width": 15}, "request", "invalid width; expected a multiple of 2; found 15"),
        ({"height": 0}, "request", "invalid height"),
        ({"seed": -1}, None, "invalid seed; expected 0 to 2**64 - 1; found -1"),
        ({"latents": np.zeros((1, 4, 8, 9))}, "request", "wrong shape of latents; expected (1, 4, 8, 8)"),
        ({"latents": np.zeros(LATENT)}, "request", "wrong shape of latents; expected (images, C, h, w)"),
        ({"latents": np.full((1, *LATENT), np.nan)}, "unet", "latents are not finite after row 0"),
        ({"latents": np.full((1, *LATENT), np.inf)}, "unet", "latents are not finite after row 0"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, on the way to the error
def test_refused(pipeline: Pipeline, options: dict[str, Any], where: str | None, words: str) -> None:
    with pytest.raises(LdmrtError) as raised:
        pipeline(PROMPT, **options)
    assert where in (raised.value.where, None)
    assert words in str(raised.value)
