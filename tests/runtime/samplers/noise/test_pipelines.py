"""Images of diffusers' pipelines again, from the seeds of torch's generators: no latents are handed over."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import LdmrtError, Pipeline, Request
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.samplers.noise.counter import FIRST, IMAGE, MASKED, noise
from ldmrt.runtime.samplers.noise.sources import STREAMS, CountedNoise, OrderedNoise

PROMPTS = ["a red apple, noto style, blue background", "two pears"]
SEEDS = [3, 2**32 - 1]
STEPS = 6
TOLERANCE = 2e-4  # relative to the largest latent: two programs' float32 through some rows, with guidance
IMAGES = np.float32(np.random.default_rng(5).integers(0, 256, (2, 16, 16, 3)) / 255)  # whole levels
MASK = np.tile(np.repeat(np.float32([1, 0]), 8), (16, 1))
CLASSES = {
    "ddim": "DDIMScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "dpm2_a": "KDPM2AncestralDiscreteScheduler",
}
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
KINDS = {
    "text": "StableDiffusionPipeline",
    "image": "StableDiffusionImg2ImgPipeline",
    "mask": "StableDiffusionInpaintPipeline",
}


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> Any:
    import diffusers

    return diffusers.StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)


@pytest.fixture(scope="module")
def ours(bundle: Path) -> Pipeline:
    return open_pipeline(bundle, "onnxruntime", check=False)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("kind", "scheduler", "arguments"),
    [
        ("text", "ddim", {}),
        ("text", "ddim", {"eta": 1.0}),
        ("text", "euler_a", {}),
        ("text", "dpm2_a", {}),
        ("image", "euler_a", {"image": IMAGES, "strength": 0.6}),
        ("mask", "euler_a", {"image": IMAGES, "mask_image": MASK, "strength": 0.6}),
        ("mask", "euler_a", {"image": IMAGES, "mask_image": MASK, "strength": 1.0}),
    ],
)
def test_latents_are_those_of_diffusers(
    kind: str, scheduler: str, arguments: dict[str, Any], theirs: Any, ours: Pipeline
) -> None:
    import diffusers
    import torch

    pipeline = getattr(diffusers, KINDS[kind])(**theirs.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = getattr(diffusers, CLASSES[scheduler]).from_config(theirs.scheduler.config)
    asked = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "latent", **arguments}
    sides = {} if kind == "image" else {"width": 16, "height": 16}
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    given = {**asked, **sides}
    if "mask_image" in asked:
        given["mask_image"] = torch.from_numpy(np.stack([MASK] * 2)[:, None])
    expected = pipeline(PROMPTS, generator=generators, **given).images.numpy()
    if "mask_image" in asked:
        asked["mask_image"] = [(MASK * 255).astype(np.uint8)] * 2
    if "image" in asked:
        asked["image"] = list(IMAGES)
    found = ours(PROMPTS, seed=SEEDS, noise="torch-cpu", scheduler=scheduler, **asked, **sides).images
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * float(np.abs(expected).max()))


@pytest.mark.parametrize("name", STREAMS)
def test_an_image_is_the_same_alone_and_in_a_batch(name: str, ours: Pipeline) -> None:
    asked: dict[str, Any] = {"num_inference_steps": 2, "scheduler": "euler_a"}
    together = ours([PROMPTS[0]] * 2, seed=[4, 9], noise=name, **asked).latents
    assert together[1:].tobytes() == ours(PROMPTS[0], seed=9, noise=name, **asked).latents.tobytes()
    assert not np.allclose(together, ours([PROMPTS[0]] * 2, seed=[4, 9], **asked).latents)


def test_streams_of_ldmrt_need_no_order() -> None:
    source = CountedNoise([1, 2])
    assert source(7, (4, 2, 2)).tobytes() == noise([1, 2], 7, (4, 2, 2)).tobytes()


@pytest.mark.parametrize("name", STREAMS)
def test_draws_are_in_the_other_programs_order(name: str) -> None:
    """What is asked for last may be what was drawn first, and what nobody asks for is drawn none the less."""
    one, shape = STREAMS[name](5), (4, 3, 3)
    expected = [one.randn(shape) for _ in range(5)]
    source = OrderedNoise(name, [5], [(IMAGE, shape), (FIRST, shape), (MASKED, shape)])
    into = np.empty((1, *shape), np.float32)
    assert source(3, shape, into) is into
    found = [source(IMAGE, shape), source(FIRST, shape), source(FIRST, shape), into, source(4, shape)]
    for each, place in zip(found, (0, 1, 1, 3, 4), strict=True):
        assert each[0].tobytes() == expected[place].tobytes()
    assert source(3, shape)[0].tobytes() == expected[3].tobytes()  # a row that has to be run again
    assert source(4, shape)[0].tobytes() == expected[4].tobytes()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"noise": "torch"}, "invalid noise.*; expected ldmrt, torch-cpu, torch-cuda, a1111; found 'torch'"),
        ({"noise": "torch-cpu", "scheduler": "dpmpp_sde"}, "noise torch-cpu cannot be drawn for this sampler"),
        ({"noise": "a1111", "scheduler": "dpmpp_2m_sde"}, "noise a1111 cannot be drawn for this sampler"),
        ({"noise": "a1111", "image": IMAGES[0]}, "noise a1111 cannot start from an image"),
    ],
)
def test_what_cannot_be_matched_is_refused(fields: dict[str, Any], message: str, ours: Pipeline) -> None:
    with pytest.raises(LdmrtError, match=message):
        ours.rows(Request("two pears", **fields))
