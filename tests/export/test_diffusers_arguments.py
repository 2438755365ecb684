"""One dictionary of arguments for diffusers' pipeline and for ours, and the images are the same."""

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from ldmrt.runtime import Pipeline
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.bundle.stage_of_configs import (
    FLUX_PIPELINES,
    PIXART_TOKENS,
    SANA_PIPELINES,
    SD3_PIPELINES,
    Z_IMAGE_PIPELINES,
)
from ldmrt.runtime.parity.metrics import psnr
from ldmrt.runtime.pipeline.request.field_names import FIELDS, OTHERWISE

PROMPTS = ["a red apple, noto style, blue background", "two pears"]
LATENTS = torch.from_numpy(np.random.default_rng(3).standard_normal((2, 4, 8, 8), np.float32))
PLAIN: dict[str, Any] = {"num_inference_steps": 4, "latents": LATENTS}
TOLERANCE = 2e-4  # relative to the largest latent: two programs' float32 through four rows, with guidance
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> diffusers.StableDiffusionPipeline:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    # clip_skip looks for what transformers 5 has dropped
    object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    return pipeline


@pytest.fixture(scope="module")
def ours(bundle: Path) -> Pipeline:
    return open_pipeline(bundle, "onnxruntime", check=False)


@pytest.fixture(scope="module")
def embeddings(theirs: diffusers.StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    prompts, negative = theirs.encode_prompt(PROMPTS, "cpu", 1, True, ["blurred", ""])
    return {"prompt_embeds": prompts, "negative_prompt_embeds": negative}


def both(theirs: Any, ours: Pipeline, **arguments: Any) -> tuple[Any, Any]:
    """What each returns as `images`."""
    arguments = PLAIN | arguments
    return theirs(**arguments).images, ours(**arguments).images


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": PROMPTS},
        {"prompt": PROMPTS[0], "num_images_per_prompt": 2, "guidance_scale": 3.0},
        {"prompt": PROMPTS, "negative_prompt": ["blurred", "red"], "guidance_rescale": 0.7, "clip_skip": None},
        {"prompt": PROMPTS, "negative_prompt": ["blurred", "red"], "clip_skip": 1},
        {"prompt": PROMPTS, "guidance_scale": 1.0, "eta": 0.0, "height": 16, "width": 16},
    ],
    ids=lambda arguments: ", ".join(arguments),
)
def test_the_same_images(arguments: dict[str, Any], theirs: Any, ours: Pipeline) -> None:
    arguments = {"guidance_scale": 5.0, **arguments}
    expected, found = both(theirs, ours, **arguments, output_type="np")
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert psnr(np.rint(found * 255), np.rint(expected * 255)) >= 60.0  # a quarter of a grey level on average
    assert np.abs(found - expected).max() <= 1e-3  # not rounded to levels, which are 4e-3 apart


@pytest.mark.parametrize("count", [1, 2])
def test_embeddings(count: int, theirs: Any, ours: Pipeline, embeddings: dict[str, torch.Tensor]) -> None:
    arguments = {**embeddings, "num_images_per_prompt": count, "guidance_scale": 5.0, "output_type": "latent"}
    arguments["latents"] = LATENTS.repeat(count, 1, 1, 1)
    expected, found = both(theirs, ours, **arguments)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=TOLERANCE * float(expected.abs().max()))


def test_images_of_pillow(theirs: Any, ours: Pipeline) -> None:
    for expected, found in zip(*both(theirs, ours, prompt=PROMPTS, guidance_scale=5.0), strict=True):
        assert (type(found), found.size, found.mode) == (type(expected), expected.size, expected.mode)
        assert np.abs(np.asarray(found).astype(int) - np.asarray(expected)).max() <= 1  # a rounding apart


def test_a_callback_is_called_alike(theirs: Any, ours: Pipeline) -> None:
    """With the same steps, times and latents, which it changes in the middle."""
    seen: dict[int, list[Any]] = {}

    def callback(pipeline: Any, step: int, timestep: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        latents = arguments["latents"]
        seen.setdefault(id(pipeline), []).append((step, float(timestep), np.array(latents)))
        return {"latents": latents * 0.5} if step == 1 else arguments

    expected, found = both(theirs, ours, prompt=PROMPTS, guidance_scale=5.0, output_type="latent",
                           callback_on_step_end=callback)  # fmt: skip
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=TOLERANCE * float(expected.abs().max()))
    assert [one[:2] for one in seen[id(ours)]] == [one[:2] for one in seen[id(theirs)]]
    for one, other in zip(seen[id(ours)], seen[id(theirs)], strict=True):
        np.testing.assert_allclose(one[2], other[2], rtol=0, atol=TOLERANCE * np.abs(other[2]).max())


PIPELINES = [
    "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "LatentConsistencyModelPipeline",
    *SD3_PIPELINES, *FLUX_PIPELINES, *PIXART_TOKENS, *SANA_PIPELINES, *Z_IMAGE_PIPELINES,
]  # fmt: skip


@pytest.mark.parametrize("name", PIPELINES)
def test_our_names_are_theirs(name: str) -> None:
    """Of what their pipelines take, the error about each name that is not ours says what is, but for these."""
    without = {"self", "kwargs", "return_dict", "clean_caption", "complex_human_instruction",
               "negative_ip_adapter_image", "negative_ip_adapter_image_embeds", "mu"}  # fmt: skip
    taken = set(inspect.signature(getattr(diffusers, name).__call__).parameters)
    assert taken - set(FIELDS) - set(OTHERWISE) <= without
    assert {"prompt", "num_inference_steps", "guidance_scale", "generator"} <= taken & set(FIELDS)
