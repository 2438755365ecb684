"""Outpainting draws around an image, which keeps its bytes, and is inpainting on a larger canvas."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ldmrt.runtime
from ldmrt.runtime import InvalidRequest, Pipeline, Request
from ldmrt.runtime.images.outpainting import canvas, whole_cells
from ldmrt.runtime.pipeline.request.images import read_images

PROMPT = "two pears"
ASKED: dict[str, Any] = {"num_inference_steps": 3, "seed": 3}
SIDES, FEATHER = (6, 0, 9, 4), 5


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Iterator[Pipeline]:
    with ldmrt.runtime.open(bundle, "onnxruntime", check=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 27, 3), np.uint8))


def slow_mask(height: int, width: int, sides: tuple[int, ...], feather: int) -> np.ndarray:
    """Pixel by pixel, as the definition says: the whitest of the sides that are added to."""
    left, top, right, bottom = sides
    mask = np.zeros((height + top + bottom, width + left + right), np.uint8)
    for y in range(len(mask)):
        for x in range(mask.shape[1]):
            inside = [(x - left, left), (y - top, top), (left + width - 1 - x, right), (top + height - 1 - y, bottom)]
            levels = [255.0 if d < 0 else 255 * max(0.0, 1 - (d + 1) / (feather + 1)) for d, more in inside if more]
            mask[y, x] = round(max(levels, default=0.0))
    return mask


@pytest.mark.parametrize(("sides", "feather"), [(SIDES, FEATHER), ((0, 3, 0, 0), 0), ((1, 1, 1, 1), 40)])
def test_the_canvas(picture: Image.Image, sides: tuple[int, int, int, int], feather: int) -> None:
    left, top, right, bottom = sides
    region = canvas(picture, sides, feather)
    mask, colours = np.asarray(region.mask), np.asarray(region.image)
    np.testing.assert_array_equal(mask, slow_mask(20, 27, sides, feather))
    np.testing.assert_array_equal(colours[top : top + 20, left : left + 27], np.asarray(picture))
    assert colours.shape[:2] == mask.shape == (20 + top + bottom, 27 + left + right)
    if left:
        assert (colours[top, :left] == np.asarray(picture)[0, 0]).all()  # filled with the edge


def test_the_image_keeps_its_bytes(pipeline: Pipeline, picture: Image.Image) -> None:
    """Outside of the feather; the canvas is no whole number of latents, and is cut off behind."""
    result = pipeline(PROMPT, **ASKED, image=picture, outpaint=SIDES, feather=FEATHER, strength=1.0)
    found, region = result.pixels[0], canvas(picture, SIDES, FEATHER)
    mask, before = np.asarray(region.mask), np.asarray(region.image)
    assert found.shape == (24, 42, 3)
    assert result.latents.shape[2:] == (12, 21)
    np.testing.assert_array_equal(found[mask == 0], before[mask == 0])
    assert (mask == 0).sum() == (27 - 2 * FEATHER) * (20 - FEATHER)
    assert np.abs(found[mask == 255].astype(int) - before[mask == 255]).max() > 20
    other = pipeline("a fox", **ASKED, image=picture, outpaint=SIDES, feather=FEATHER, strength=1.0).pixels[0]
    np.testing.assert_array_equal(other[mask == 0], found[mask == 0])


def test_it_is_inpainting_on_the_canvas(pipeline: Pipeline, picture: Image.Image) -> None:
    """By hand: sides of whole latents, so that the mask that is drawn is the mask that is seen."""
    sides = (6, 0, 8, 4)
    small = picture.crop((0, 0, 26, 20))
    region = canvas(small, sides, 0)
    asked: dict[str, Any] = {**ASKED, "strength": 0.7, "mask_content": "noise"}
    found = pipeline(PROMPT, **asked, image=small, outpaint=sides, feather=0)
    by_hand = pipeline(PROMPT, **asked, image=region.image, mask_image=region.mask)
    np.testing.assert_array_equal(found.latents, by_hand.latents)
    np.testing.assert_array_equal(found.pixels, region.paste(by_hand.pixels))


def test_a_latent_on_the_border_is_drawn(pipeline: Pipeline, picture: Image.Image) -> None:
    """An odd width ends within a latent, which diffusers' mask would keep with what fills the canvas."""
    request = Request(PROMPT, image=picture, outpaint=(0, 0, 9, 0), feather=0)
    given = read_images(request, pipeline.stage)
    assert given.mask is not None
    assert given.size == (20, 36)
    assert given.mask[0, 0, 0].tolist() == [0.0] * 26 + [1.0] * 10  # the image is 27 wide, a latent 2
    cells = np.zeros((1, 1, 4, 4), np.float32)
    cells[0, 0, 1, 3] = 1
    np.testing.assert_array_equal(whole_cells(cells, 2)[0, 0], np.kron([[0, 1], [0, 0]], np.ones((2, 2))))


def test_around_the_image_at_full_resolution(pipeline: Pipeline, picture: Image.Image) -> None:
    """With `padding_mask_crop` only the region around what is added is drawn, at the model's own size."""
    asked: dict[str, Any] = {"outpaint": (0, 0, 9, 0), "feather": 2, "padding_mask_crop": 4, "strength": 1.0}
    result = pipeline(PROMPT, **ASKED, image=picture, **asked, num_images_per_prompt=2)
    assert (result.pixels.shape, result.latents.shape[2:]) == ((2, 20, 36, 3), (8, 8))
    for each in result.pixels:
        np.testing.assert_array_equal(each[:, :25], np.asarray(picture)[:, :25])


@pytest.mark.parametrize("crop", [None, 4])
def test_too_large_a_canvas_is_refused_before_it_is_made(pipeline: Pipeline, crop: int | None) -> None:
    for sides in ((0, 0, 2**15, 0), (0, 9000, 9000, 0)):
        request = Request(PROMPT, image=BLACK, outpaint=sides, padding_mask_crop=crop)
        for refused in (lambda request: read_images(request, pipeline.stage), pipeline.size):
            with pytest.raises(InvalidRequest, match="outpaint: too large a canvas; expected sides of at most 32768"):
                refused(request)


BLACK = np.zeros((16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"outpaint": (0, 0, 8, 0)}, "outpaint without image"),
        ({"image": BLACK, "outpaint": (0, 0, 0, 0)}, "invalid outpaint; expected at least a side above 0"),
        ({"image": BLACK, "outpaint": (0, 0, 8)}, "invalid outpaint; expected left, top, right and bottom in pixels"),
        ({"image": BLACK, "outpaint": (0, 0, 8, -1)}, "invalid outpaint"),
        ({"image": BLACK, "feather": 3}, "feather without outpaint"),
        ({"image": BLACK, "outpaint": (0, 0, 8, 0), "mask_image": BLACK}, "combined with mask_image"),
        ({"image": BLACK, "outpaint": (0, 0, 8, 0), "width": 32}, "outpaint cannot be combined with width"),
        ({"image": BLACK, "outpaint": (0, 0, 8, 0), "hires": 2}, "hires cannot be combined with outpaint"),
        ({"prompt": ["a", "b"], "image": [BLACK] * 2, "outpaint": (0, 0, 8, 0)}, "outpaint takes one image"),
    ],
)  # fmt: skip
def test_what_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        Request(**{"prompt": PROMPT, **fields})
