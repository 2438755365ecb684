"""Masks in AUTOMATIC1111's API: their region, what they start from, and what they keep of the image."""

from typing import Any

import numpy as np
import pytest
import webuiapi
from PIL import Image

from ldmrt.runtime import Request
from ldmrt.runtime.images.inpainting import MaskedRegion
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.serve.http.apis.a1111.inpainting import CONTENTS, blurred, weights_of

from ..conftest import Running
from .test_a1111 import SAME, SMALL, api, picture, pixels

__all__ = ["api", "picture"]
FIELDS: dict[str, Any] = {"negative_prompt": "", "strength": 0.75, "guidance_scale": 7.0, "seed": 7, "eta": 0.0, **SAME}


@pytest.fixture(scope="module")
def large() -> Image.Image:
    """An image larger than the tiny model's, of no square."""
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (60, 48, 3), np.uint8))


@pytest.fixture(scope="module")
def spot() -> Image.Image:
    """A mask of a part of the large image."""
    area = np.zeros((60, 48), np.uint8)
    area[25:40, 20:33] = 255
    return Image.fromarray(area)


def test_the_clients_defaults(running: Running, pipeline: Pipeline, large: Image.Image, spot: Image.Image) -> None:
    """Only the region around the mask is drawn, from a fill; all else of the image comes back as it was sent."""
    api = webuiapi.WebUIApi(baseurl=f"{running.url}/sdapi/v1")
    result = api.img2img([large], mask_image=spot, prompt="a pear", seed=7, **SMALL)
    mask = blurred(spot, 4)
    request = Request(
        "a pear", negative_prompt="", image=large, mask_image=mask, mask_content="fill", padding_mask_crop=0,
        strength=0.75, guidance_scale=7.0, seed=7, num_inference_steps=2, width=16, height=16, scheduler="euler_a",
        scheduler_settings={"timestep_spacing": "linspace"},
    )  # fmt: skip
    right = pipeline.generate(request).pixels
    np.testing.assert_array_equal(pixels(result.images), right)
    kept = np.asarray(mask) == 0
    assert kept.sum() > 500
    np.testing.assert_array_equal(right[0][kept], np.asarray(large)[kept])
    assert (right[0][~kept] != np.asarray(large)[~kept]).mean() > 0.5
    assert (result.info["width"], result.info["height"]) == (16, 16)
    said = "Mask blur: 4, Inpaint area: Only masked, Masked area padding: 0, Masked content: fill"
    assert said in result.info["infotexts"][0]


@pytest.mark.parametrize("fill", range(4))
def test_what_a_region_starts_from(
    api: webuiapi.WebUIApi, pipeline: Pipeline, large: Image.Image, spot: Image.Image, fill: int
) -> None:
    result = api.img2img(
        [large], prompt="a pear", mask_image=spot, mask_blur=0, seed=7, eta=0.0, inpainting_fill=fill,
        inpaint_full_res_padding=5, batch_size=2, **SMALL,
    )  # fmt: skip
    request = Request(
        "a pear", image=large, mask_image=spot, padding_mask_crop=5, mask_content=CONTENTS[fill], width=16, height=16,
        num_images_per_prompt=2, **FIELDS,
    )  # fmt: skip
    np.testing.assert_array_equal(pixels(result.images), pipeline.generate(request).pixels)


@pytest.mark.parametrize("inverted", [0, 1])
@pytest.mark.parametrize("by_alpha", [False, True])
@pytest.mark.parametrize("blur", [0, 3])
def test_masks_of_the_whole_image(
    api: webuiapi.WebUIApi, pipeline: Pipeline, picture: Image.Image, inverted: int, by_alpha: bool, blur: int
) -> None:
    """All of the image is drawn; what the mask keeps is laid over it, where it is grey twice as fast as the mask."""
    white = np.zeros((16, 16), np.uint8)
    white[:, 6:] = 255
    mask = Image.fromarray(white)
    sent = mask
    if by_alpha:
        sent = Image.new("RGBA", (16, 16), "black")
        sent.putalpha(mask)
    result = api.img2img(
        [picture], prompt="a pear", mask_image=sent, mask_blur=blur, inpainting_mask_invert=inverted, seed=7, eta=0.0,
        inpainting_fill=1, inpaint_full_res=False, **SMALL,
    )  # fmt: skip
    right = blurred(Image.fromarray(255 - white if inverted else white), blur)
    drawn = pipeline.generate(Request("a pear", image=picture, mask_image=right, **FIELDS)).pixels
    twice = np.minimum(255, 2 * np.asarray(right).astype(int)).astype(np.uint8)
    np.testing.assert_array_equal(pixels(result.images), MaskedRegion(picture, Image.fromarray(twice)).paste(drawn))
    share = twice[..., None] / 255
    mixed = share * drawn[0] + (1 - share) * np.asarray(picture)
    assert np.abs(pixels(result.images)[0] - mixed).max() <= 2  # four roundings, of half a level each
    kept = np.asarray(right) == 0
    np.testing.assert_array_equal(pixels(result.images)[0][kept], np.asarray(picture)[kept])


def test_a_black_mask_is_no_mask(api: webuiapi.WebUIApi, picture: Image.Image) -> None:
    """As in the web UI: no region can be drawn, so the whole image is."""
    asked: dict[str, Any] = {"images": [picture], "prompt": "a pear", "seed": 7, "eta": 0.0, **SMALL}
    without = api.img2img(**asked)
    black = api.img2img(mask_image=Image.new("L", (16, 16)), **asked)
    np.testing.assert_array_equal(pixels(black.images), pixels(without.images))
    kept = api.img2img(mask_image=Image.new("L", (16, 16)), inpaint_full_res=False, **asked)
    np.testing.assert_array_equal(pixels(kept.images)[0], np.asarray(picture))


@pytest.mark.parametrize("deviation", [1, 4, 17, 64])
@pytest.mark.parametrize("size", [(40, 30), (1, 9), (700, 2)])
def test_a_blur_is_opencvs(deviation: int, size: tuple[int, int]) -> None:
    levels = np.random.default_rng(deviation).integers(0, 256, size, np.uint8)
    levels[: size[0] // 2] = 255
    found = np.asarray(blurred(Image.fromarray(levels), deviation))
    weights = weights_of(deviation)
    kernel = np.array([*weights[:0:-1], *weights])
    assert kernel.sum() == 256
    reach = len(weights) - 1
    exact = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * deviation**2))
    assert (
        np.abs(kernel - 256 * exact / exact.sum()).max() <= 1 + reach / 100
    )  # of rounding; the middle has what is left
    slow = levels
    for _ in range(2):
        rows = [np.convolve(np.pad(row.astype(int), reach, mode="reflect"), kernel, "valid") for row in slow]
        slow = (np.stack(rows) + 128 >> 8).T
    np.testing.assert_array_equal(found, slow)
    opencv = pytest.importorskip("cv2")
    side = 2 * reach + 1
    theirs = opencv.GaussianBlur(opencv.GaussianBlur(levels, (side, 1), deviation), (1, side), deviation)
    np.testing.assert_array_equal(found, theirs.reshape(size))
