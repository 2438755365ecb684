"""Prepare images for CLIP's image encoder as transformers' CLIPImageProcessor does (Radford et al. 2021)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .reading import read_rgb

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


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
    from PIL import Image

    arrays = []
    for each in images:
        image = read_rgb(what, each)
        short = min(image.size)
        width, height = (size if side == short else int(size * side / short) for side in image.size)
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        arrays.append(np.asarray(resized.crop((left, top, left + size, top + size))))
    colours = (np.stack(arrays) * (1 / 255)).astype(np.float32)
    pixels: NDArray[np.float32] = ((colours - MEAN) / DEVIATION).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels)
