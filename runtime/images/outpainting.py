"""Draw more of an image on its sides: a larger canvas, and a mask that fades into the image."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .inpainting import MaskedRegion

if TYPE_CHECKING:
    from PIL.Image import Image

Sides = tuple[int, int, int, int]  # pixels on the left, at the top, on the right, at the bottom


def canvas(image: "Image", sides: Sides, feather: int) -> MaskedRegion:
    """Return an image on a larger canvas, with the mask of what is to be drawn.

    The canvas is filled by repeating the pixels at the image's edges.

    Args:
        image: RGB.
        sides: How many pixels are added.
        feather: So many pixels of the image are drawn over at each side that is added to; the mask fades in them from
            white to black, and it is black in all others.
    """
    from PIL import Image

    left, top, right, bottom = sides
    colours = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge")
    levels = np.maximum(_fade(image.height, top, bottom, feather)[:, None], _fade(image.width, left, right, feather))
    return MaskedRegion(Image.fromarray(colours), Image.fromarray(levels))


def _fade(length: int, before: int, after: int, feather: int) -> NDArray[np.uint8]:
    """Return the mask along one axis, (before + length + after,): white where pixels are added, then fading."""
    place = np.arange(length)
    distances = [place + 1] * (before > 0) + [length - place] * (after > 0)
    inside = [255 * np.clip(1 - distance / (feather + 1), 0, 1) for distance in distances]
    level = np.max([np.zeros(length), *inside], axis=0).round().astype(np.uint8)
    return np.pad(level, (before, after), constant_values=255)


def whole_latents(region: MaskedRegion, size: tuple[int, int]) -> "tuple[Image, Image]":
    """Return the image and the mask of a canvas on one of (height, width), which is at most some pixels larger.

    The pixels beyond the canvas are white in the mask; `MaskedRegion.paste` is given images without them.
    """
    from PIL import Image

    more = size[0] - region.image.height, size[1] - region.image.width
    colours = np.pad(np.asarray(region.image), ((0, more[0]), (0, more[1]), (0, 0)), mode="edge")
    mask = np.pad(np.asarray(region.mask), ((0, more[0]), (0, more[1])), constant_values=255)
    return Image.fromarray(colours), Image.fromarray(mask)


def whole_cells(mask: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Return a mask (N, 1, H, W) that is 1 in all pixels of a latent, `factor` a side, where it is 1 in one of them.

    A latent on the border of the image is then drawn, and no pixels that only fill the canvas are kept with it.
    """
    n, _, height, width = mask.shape
    cells = mask.reshape(n, 1, height // factor, factor, width // factor, factor).max((3, 5))
    whole: NDArray[np.float32] = cells.repeat(factor, 2).repeat(factor, 3)
    return whole
