"""Read masks as AUTOMATIC1111 does, and lay what they keep of an image over what was drawn.

`modules/processing.py` of its web UI, `StableDiffusionProcessingImg2Img.init` and `apply_overlay`.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.images.inpainting import MaskedRegion
from ldmrt.runtime.images.reading import read_rgb, resized_to

if TYPE_CHECKING:
    from PIL.Image import Image

# What the white of a mask is before it is drawn, by the number of `inpainting_fill`: the words of a `Request`, and
# those of AUTOMATIC1111's own texts.
CONTENTS = ("fill", "original", "noise", "zeros")
NAMES = ("fill", "original", "latent noise", "latent nothing")
REACH = 2.5  # standard deviations at which a blur ends
BAND = 64  # rows blurred at once
ONE = 256  # what the weights of a blur add up to


def mask_of(image: "Image", blur: int, *, inverted: bool) -> "Image":
    """Return a mask in grey: the alpha of an image that is transparent in parts, else its luminance."""
    from PIL import ImageOps

    alpha = image.getchannel("A") if image.mode.endswith("A") else None
    transparent = alpha is not None and alpha.getextrema() != (255, 255)
    grey = alpha.point(lambda level: 255 if level > 128 else 0) if transparent and alpha else image.convert("L")
    return blurred(ImageOps.invert(grey) if inverted else grey, blur)


def blurred(grey: "Image", deviation: int) -> "Image":
    """Blur a grey image by a Gaussian that ends at 2.5 standard deviations, along rows and then along columns.

    Weights are in 256ths, each is rounded to 256 levels, and the image is mirrored at its edges, as by OpenCV's
    `GaussianBlur` of 8 bits: what is not black in the end decides on the region that is drawn.
    """
    from PIL import Image

    if not deviation:
        return grey
    weights = weights_of(deviation)
    along = _along_rows(np.asarray(grey), weights)
    return Image.fromarray(np.ascontiguousarray(_along_rows(along.T, weights).T))


def weights_of(deviation: int) -> list[int]:
    """Return half of a Gaussian in 256ths, its middle first; what one weight is rounded by is added to the next."""
    reach = int(REACH * deviation + 0.5)
    exact = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * deviation**2))
    weights, left = list[int](), 0.0
    for weight in (ONE * exact / exact.sum())[:reach].tolist():
        weights.append(round(weight + left))
        left += weight - weights[-1]
    return [ONE - 2 * sum(weights), *weights[::-1]]


def _along_rows(levels: NDArray[np.uint8], weights: list[int]) -> NDArray[np.uint8]:
    """Blur each row of (H, W) with symmetric weights, the first of which is the middle."""
    reach, width, out = len(weights) - 1, levels.shape[1], np.empty_like(levels)
    for top in range(0, len(levels), BAND):
        padded = np.pad(levels[top : top + BAND], ((0, 0), (reach, reach)), mode="reflect").astype(np.int32)
        total = padded[:, reach : reach + width] * weights[0] + ONE // 2
        for distance, weight in enumerate(weights[1:], start=1):
            left, right = reach - distance, reach + distance
            total += weight * (padded[:, left : left + width] + padded[:, right : right + width])
        out[top : top + BAND] = total // ONE
    return out


def kept_over(image: object, mask: "Image", drawn: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images (N, H, W, 3) that were drawn, with the image where the mask is black.

    Where the mask is grey the image fades in twice as fast as the mask does.
    """
    size = drawn.shape[1:3]
    twice = resized_to(mask, size).point(lambda level: min(255, 2 * level))
    return MaskedRegion(resized_to(read_rgb("init_images", image), size), twice).paste(drawn)
