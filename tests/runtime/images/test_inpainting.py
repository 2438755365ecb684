"""Regions around masks, and what is pasted over them, against diffusers' `VaeImageProcessor`."""

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.images.inpainting import MaskedRegion, covering, crop_region, filled, filling

RANDOM = range(300)


def random_case(number: int) -> tuple[Image.Image, Image.Image, tuple[int, int], int]:
    """An image, a mask with some white in it, a size to draw at, and a padding."""
    random = np.random.default_rng(number)
    height, width = random.integers(8, 120, 2)
    area = np.zeros((height, width), np.uint8)
    (top, bottom), (left, right) = sorted(random.integers(0, height, 2)), sorted(random.integers(0, width, 2))
    area[top : bottom + 1, left : right + 1] = random.integers(1, 256, (bottom + 1 - top, right + 1 - left))
    colours = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
    size = tuple(8 * side for side in random.integers(1, 16, 2).tolist())
    return colours, Image.fromarray(area), size, int(random.integers(0, 40))  # type: ignore[return-value]


@pytest.mark.oracle
def test_regions_and_images_are_diffusers() -> None:
    """Bit for bit: the region, the image that is drawn from, and the image with what was drawn."""
    processor = pytest.importorskip("diffusers.image_processor").VaeImageProcessor(do_normalize=False)
    boxes = set()
    for number in RANDOM:
        image, mask, (height, width), padding = random_case(number)
        box = crop_region(mask, (height, width), padding)
        assert box == processor.get_crop_region(mask, width, height, padding), number
        boxes.add(box)
        cut = image.crop(box)
        if min(filling_inner(cut, (height, width))) > 0:
            theirs = processor.resize(cut, height, width, "fill")
            np.testing.assert_array_equal(np.asarray(filling(cut, (height, width))), np.asarray(theirs), f"{number}")
        drawn = Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8))
        for region in (box, None):
            if region is None:
                drawn = drawn.resize(image.size)
            found = MaskedRegion(image, mask, region).paste(np.asarray(drawn)[None])[0]
            theirs = processor.apply_overlay(mask, image, drawn, region)
            np.testing.assert_array_equal(found, np.asarray(theirs), f"{number} {region}")
    assert len(boxes) > 250


def filling_inner(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    """The size of an image within another: nothing can be resized to no pixels, neither here nor there."""
    height, width = size
    return min(width, image.width * height // image.height), min(height, image.height * width // image.width)


def test_what_the_mask_keeps_has_its_own_pixels() -> None:
    image, mask, size, padding = random_case(7)
    drawn = np.zeros((1, *size, 3), np.uint8)
    result = MaskedRegion(image, mask, crop_region(mask, size, padding)).paste(drawn)[0]
    kept = np.asarray(mask) == 0
    np.testing.assert_array_equal(result[kept], np.asarray(image)[kept])
    white = np.asarray(mask) == 255
    assert (result[white] == 0).all()


def test_a_black_mask_has_no_region() -> None:
    with pytest.raises(InvalidRequest, match="the mask is black"):
        crop_region(Image.new("L", (16, 16)), (16, 16), 0)


def test_filling_and_covering_keep_the_ratio() -> None:
    """A line at 45 degrees stays one; nothing else of the image is lost, or seen twice."""
    square = Image.fromarray(np.eye(32, dtype=np.uint8) * 255)
    inside = np.asarray(filling(square, (32, 64)))[:, 16:48]
    np.testing.assert_array_equal(inside, np.asarray(square))
    across = np.asarray(covering(square, (32, 16)))
    np.testing.assert_array_equal(across, np.asarray(square)[:, 8:24])


def slowly_filled(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The same in floats: blurs of premultiplied colours and alpha, the widest first, each laid over the one before."""
    alpha = 1 - mask[..., None] / 255
    planes = np.concatenate([image * alpha, 255 * alpha], axis=-1)
    out = np.zeros((*mask.shape, 3))
    for radius, times in ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1)):  # AUTOMATIC1111's
        blurred = np.stack([np.asarray(blur(plane, radius)) for plane in np.moveaxis(planes, -1, 0)], axis=-1)
        for _ in range(times):
            out = blurred[..., :3] + out * (1 - blurred[..., 3:] / 255)
    return out


def blur(plane: np.ndarray, radius: int) -> np.ndarray:
    """Pillow's own blur of one plane, in 8 bits."""
    from PIL import ImageFilter

    return np.asarray(Image.fromarray(np.rint(plane).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius)))


def test_a_fill_is_made_of_the_surroundings() -> None:
    """The white is filled with what is around it, and what is kept is kept."""
    image, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    image[:] = np.linspace(50, 200, 64, dtype=np.uint8)[:, None]
    image[24:40, 24:40] = (255, 0, 0)
    mask[24:40, 24:40] = 255
    found = np.asarray(filled(Image.fromarray(image), Image.fromarray(mask))).astype(float)
    np.testing.assert_array_equal(found[mask == 0], image[mask == 0])
    inside = found[mask == 255]
    assert np.ptp(inside, axis=-1).max() <= 4  # grey as the surroundings: nothing of the red
    # 11 layers, each of which divides and multiplies by alpha in 8 bits: half a level each, and where alpha is small
    # its own rounding is amplified.
    assert np.abs(found - slowly_filled(image, mask)).max() <= 4  # 2.2 of 255 here
    assert abs(inside.mean() - image[mask == 0].mean()) <= 10  # and not black
