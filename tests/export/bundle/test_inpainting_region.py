"""Inpainting of the region around a mask, on PyTorch and on ONNX, against diffusers' `padding_mask_crop`."""

from typing import Any

import diffusers
import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime import InvalidRequest, LdmrtError, Pipeline, Request
from ldmrt.runtime.images.inpainting import filled
from ldmrt.runtime.pipeline.request.images import read_images
from ldmrt.runtime.samplers.noise.counter import FIRST, IMAGE, MASKED, noise
from ldmrt.runtime.samplers.registry import find_scheduler

from ..test_tasks import SEEDS, STEPS, components, drawing, ours, picture

__all__ = ["components", "ours"]
SIZE = (16, 24)  # height, width
ASKED: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "negative_prompt": "blurred"}
# Latents differ by 2e-4 of the largest at most (`test_tasks`), the images by some times that of 255 levels: where a
# value lies close to the middle of two levels it is rounded to the other. Resizing keeps a difference of one level.
LEVELS = 1


@pytest.fixture
def mask() -> Image.Image:
    """A blurred spot of a mask, nearer to the right than to the left."""
    area = np.zeros((50, 40), np.uint8)
    area[20:30, 25:33] = 255
    area[20:30, 24] = 100
    return Image.fromarray(area)


@pytest.mark.parametrize(("padding", "strength"), [(0, 1.0), (6, 0.7)])
def test_a_region_is_diffusers(
    padding: int, strength: float, ours: Pipeline, components: dict[str, Any], mask: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    image, (height, width) = picture(), SIZE
    pipeline = diffusers.StableDiffusionInpaintPipeline(**components)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, **find_scheduler({}, "ddim")[1])
    pipeline.set_progress_bar_config(disable=True)
    drawing(pipeline, SEEDS[:1], [IMAGE, FIRST, MASKED], monkeypatch)
    expected = pipeline(
        "two pears", image=image, mask_image=mask, padding_mask_crop=padding, height=height, width=width,
        strength=strength, **ASKED,
    ).images  # fmt: skip
    result = ours(
        "two pears", image=image, mask_image=mask, padding_mask_crop=padding, height=height, width=width,
        strength=strength, seed=SEEDS[:1], scheduler="ddim", **ASKED,
    )  # fmt: skip
    found, kept = result.pixels[0].astype(int), np.asarray(mask) == 0
    assert np.abs(found - np.asarray(expected[0])).max() <= LEVELS
    np.testing.assert_array_equal(found[kept], np.asarray(image)[kept])
    assert np.abs(found - np.asarray(image))[~kept].max() > 20


def test_the_region_has_the_models_own_size(ours: Pipeline, mask: Image.Image) -> None:
    request = Request("a", image=picture(), mask_image=mask, padding_mask_crop=4)
    assert read_images(request, ours.stage).size == (ours.stage.size, ours.stage.size) == ours.size(request)


def test_images_as_floats_and_as_latents(ours: Pipeline, mask: Image.Image) -> None:
    """Floats are the levels divided by 255; latents are the region's."""
    asked: dict[str, Any] = {"image": picture(), "mask_image": mask, "padding_mask_crop": 4, "num_inference_steps": 2}
    levels = ours("a", **asked).pixels
    floats = ours("a", **asked, output_type="np").array
    np.testing.assert_array_equal(floats, levels / np.float32(255))
    latents = ours("a", **asked, output_type="latent").latents
    assert latents.shape[2:] == (ours.stage.size // ours.stage.space.factor,) * 2


def test_images_of_a_batch(ours: Pipeline, mask: Image.Image) -> None:
    """Each image of a request is the one that its seed makes alone, row by row too."""
    asked: dict[str, Any] = {"image": picture(), "mask_image": mask, "padding_mask_crop": 4, "num_inference_steps": 2}
    both = ours("a", num_images_per_prompt=2, seed=5, **asked).pixels
    assert both.shape == (2, 50, 40, 3)
    alone = [ours("a", seed=seed, **asked).pixels[0].astype(int) for seed in (5, 6)]
    assert np.abs(both - np.stack(alone)).max() <= LEVELS


@pytest.mark.parametrize("content", ["original", "fill", "noise", "zeros"])
def test_what_the_mask_starts_from(ours: Pipeline, mask: Image.Image, content: str) -> None:
    """The first latents, noised by the first row's level, are those of the content; outside the mask of the image."""
    side = ours.stage.size
    image = picture().resize((side, side), Image.Resampling.LANCZOS)
    mask = mask.resize((side, side), Image.Resampling.LANCZOS)
    request = Request("a", image=image, mask_image=mask, mask_content=content, strength=0.5, seed=3, scheduler="ddim")
    task = ours.prepare(request)
    source = filled(image, mask) if content != "original" else image
    init = ours.prepare(Request("a", image=source, strength=0.5, seed=3, scheduler="ddim")).init
    assert init is not None
    assert task.init is not None
    small = read_images(request, ours.stage).mask[:, :, :: ours.stage.space.factor, :: ours.stage.space.factor]  # type: ignore[index]
    assert 0 < small.sum() < small.size
    white = {"noise": noise([3], FIRST, init.shape[1:]), "zeros": np.zeros_like(init)}.get(content, init)
    np.testing.assert_array_equal(task.init, init * (1 - small) + white * small)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"padding_mask_crop": 4}, "padding_mask_crop without mask_image"),
        ({"mask_content": "fill"}, "mask_content without mask_image"),
        ({"mask_content": "nothing", "mask_image": True}, "invalid mask_content"),
        ({"padding_mask_crop": -1, "mask_image": True}, "invalid padding_mask_crop; expected at least 0"),
        ({"padding_mask_crop": 4, "mask_image": Image.new("L", (8, 8), 255)}, "a mask of another size than its image"),
        ({"padding_mask_crop": 4, "mask_image": Image.new("L", (40, 50))}, "the mask is black"),
        (
            {
                "image": Image.new("RGB", (512, 8)),
                "mask_image": Image.new("L", (512, 8), 255),
                "padding_mask_crop": 0,
                "height": 512,
                "width": 16,
            },
            "too narrow for this size; expected a width and height of its ratio; found 512x8",
        ),
        ({"padding_mask_crop": 4, "mask_image": True, "controls": {"a": picture()}}, "cannot be combined with control"),
        ({"prompt": ["a", "b"], "image": [picture()] * 2, "padding_mask_crop": 4, "mask_image": True}, "one image"),
    ],
)
def test_what_is_refused(ours: Pipeline, mask: Image.Image, fields: dict[str, Any], says: str) -> None:
    given = {"prompt": "a", "image": picture(), **fields}
    if fields.get("mask_image") is True:
        given["mask_image"] = mask
    with pytest.raises((InvalidRequest, LdmrtError), match=says):
        ours(**given)
