"""Prepare images for CLIP's image encoder as transformers' CLIPImageProcessor does (Radford et al. 2021)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import BundleError
from ldmrt.runtime.tensors import Engine

from .reading import read_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
LONGEST = 16  # times the shorter side; of a longer image only the middle is resized, so that memory is bounded


def width_of(component: str, encoder: Engine) -> int:
    """Return the height and width in pixels of the images that an encoder reads.

    Raises:
        BundleError: Its input has no fixed width.
    """
    width = encoder.inputs[0].shape[-1]
    if not isinstance(width, int):
        raise BundleError(component, "no input of a fixed width", found=encoder.inputs[0], hint="export again")
    return width


def clip_pixels(what: str, images: Sequence[object], size: int) -> NDArray[np.float32]:
    """Read images, resize their shorter side by a bicubic filter, cut out the middle, and normalise the colours.

    Args:
        what: The purpose of the images, for errors.
        images: Items of `reading.split`.
        size: Height and width that the encoder reads, in pixels.

    Returns:
        (N, 3, size, size), float32.

    Raises:
        LdmrtError: An image cannot be read.
    """
    arrays = [np.asarray(_middle(read_rgb(what, each), size)) for each in images]
    colours = (np.stack(arrays) * (1 / 255)).astype(np.float32)
    pixels: NDArray[np.float32] = ((colours - MEAN) / DEVIATION).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels)


def _middle(image: "Image", size: int) -> "Image":
    """Resize an image so that its shorter side is `size`, and cut out the middle: (size, size)."""
    from PIL import Image

    short = min(image.size)
    width, height = (size if side == short else int(size * side / short) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    if max(width, height) <= LONGEST * size:
        return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    wide, high = image.width / width, image.height / height  # pixels of the image to one of the resized one
    box = left * wide, top * high, (left + size) * wide, (top + size) * high
    return image.resize((size, size), Image.Resampling.BICUBIC, box)
