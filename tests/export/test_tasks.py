"""Picture to picture and inpainting, on PyTorch and on ONNX, against diffusers' pipelines with the same noises."""

import importlib
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.runtime import SCHEDULERS, Pipeline
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.samplers.noise.counter import FIRST, IMAGE, MASKED, noise
from ldmrt.runtime.samplers.registry import find_scheduler

PROMPTS = ["a red apple, noto style, blue background", "two pears"]
SAMPLERS = ("ddim", "euler_a", "dpmpp_2m", "heun", "plms", "unipc")
HEIGHT, WIDTH, STEPS, SEEDS = 24, 16, 6, [3, 4]
# Relative to the largest latent. Two programs' float32 through six rows and guidance.
TOLERANCE = 2e-4
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers


@pytest.fixture(scope="module", params=["torch", "onnx"])
def ours(request: pytest.FixtureRequest, checkpoint: Path) -> Pipeline:
    if request.param == "torch":
        return torch_pipeline(load(checkpoint))
    return open_pipeline(request.getfixturevalue("bundle"))


@pytest.fixture(scope="module")
def components(checkpoint: Path) -> dict[str, Any]:
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    return {**loaded.components, "requires_safety_checker": False}


def picture(seed: int = 0) -> Image.Image:
    """Smooth and coloured, of another size than is asked for."""
    small = np.random.default_rng(seed).integers(0, 255, (5, 4, 3), np.uint8)
    return Image.fromarray(small).resize((40, 50), Image.Resampling.BICUBIC)


def mask() -> Image.Image:
    area = np.zeros((50, 40), np.uint8)
    area[10:40, 15:] = 255
    return Image.fromarray(area)


def drawing(pipeline: Any, seeds: list[int], streams: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let diffusers draw what our streams give: first those named, then a row each."""
    queue = iter([*streams, *range(1, 1000)])

    def drawn(shape: Any, *_: Any, **__: Any) -> torch.Tensor:
        return torch.from_numpy(noise(seeds, next(queue), tuple(shape)[1:]))[: shape[0]]

    for name in (type(pipeline).__module__, type(pipeline.scheduler).__module__, "diffusers.models.autoencoders.vae"):
        module = importlib.import_module(name)
        if hasattr(module, "randn_tensor"):
            monkeypatch.setattr(module, "randn_tensor", drawn)


def theirs(pipeline: Any, name: str, streams: list[int], monkeypatch: pytest.MonkeyPatch, **asked: Any) -> NDArray[Any]:
    """The latents of diffusers' pipeline, which draws what our streams give: first those named, then a row each."""
    sampler = getattr(diffusers, SCHEDULERS[name].class_name)
    pipeline.scheduler = sampler.from_config(pipeline.scheduler.config, **find_scheduler({}, name)[1])
    pipeline.set_progress_bar_config(disable=True)
    drawing(pipeline, SEEDS, streams, monkeypatch)
    found = pipeline(PROMPTS, negative_prompt=["blurred"] * 2, num_inference_steps=STEPS, guidance_scale=4.0,
                     output_type="latent", **asked).images  # fmt: skip
    return found.numpy()


def close(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert expected.std() > 0.1
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("strength", [0.5, 0.85])
@pytest.mark.parametrize("name", SAMPLERS)
def test_picture_to_picture(
    name: str, strength: float, ours: Pipeline, components: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture().resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)  # diffusers keeps a picture's own size
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(**components)
    expected = theirs(pipeline, name, [IMAGE, FIRST], monkeypatch, image=[image] * 2, strength=strength)
    asked = {
        "negative_prompt": "blurred",
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "seed": SEEDS,
        "scheduler": name,
    }
    close(ours(PROMPTS, image=image, strength=strength, **asked).latents, expected)
    resized = ours(PROMPTS, image=picture(), width=WIDTH, height=HEIGHT, strength=strength, **asked)
    close(resized.latents, expected)


def test_one_image_and_mask_for_each_prompt(
    ours: Pipeline, components: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [picture(seed).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS) for seed in (0, 1)]
    asked = {
        "negative_prompt": "blurred",
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "seed": SEEDS,
        "scheduler": "ddim",
    }
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(**components)
    expected = theirs(pipeline, "ddim", [IMAGE, FIRST], monkeypatch, image=images, strength=0.5)
    close(ours(PROMPTS, image=images, strength=0.5, **asked).latents, expected)
    masks = [mask(), mask().transpose(Image.Transpose.ROTATE_180)]
    pipeline = diffusers.StableDiffusionInpaintPipeline(**components)
    expected = theirs(
        pipeline, "ddim", [IMAGE, FIRST, MASKED], monkeypatch,
        image=images, mask_image=masks, height=HEIGHT, width=WIDTH, strength=0.7,
    )  # fmt: skip
    close(ours(PROMPTS, image=images, mask_image=masks, strength=0.7, **asked).latents, expected)


@pytest.mark.parametrize("strength", [1.0, 0.7])
@pytest.mark.parametrize("name", SAMPLERS)
def test_inpainting_by_blending(
    name: str, strength: float, ours: Pipeline, components: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = diffusers.StableDiffusionInpaintPipeline(**components)
    expected = theirs(
        pipeline, name, [IMAGE, FIRST, MASKED], monkeypatch,
        image=[picture()] * 2, mask_image=[mask()] * 2, height=HEIGHT, width=WIDTH, strength=strength,
    )  # fmt: skip
    found = ours(
        PROMPTS,
        negative_prompt="blurred",
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        seed=SEEDS,
        scheduler=name,
        strength=strength,
        image=picture(),
        mask_image=mask(),
        width=WIDTH,
        height=HEIGHT,
    )
    close(found.latents, expected)
