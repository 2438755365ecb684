"""Images as 256 levels, and as Pillow has them."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image


def levels(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round images (N, H, W, C), values in [0, 1], to 256 levels.

    A grey image has its one channel three times. Of four channels the last is a depth: its 16 bits become the last two
    of six channels, as they are of autoencoders that give six themselves.
    """
    rounded = np.rint(images * 255).astype(np.uint8)
    if images.shape[-1] == 1:
        return rounded.repeat(3, axis=-1)
    if images.shape[-1] != 4:
        return rounded
    depth = (images[..., 3] * np.float32(65535)).astype(np.uint16)  # cut off, as diffusers does
    high, low = (depth >> np.uint16(8)).astype(np.uint8), (depth & np.uint16(255)).astype(np.uint8)
    return np.stack([*np.moveaxis(rounded[..., :3], -1, 0), np.zeros_like(high), high, low], axis=-1)


def to_pillow(pixels: NDArray[np.uint8]) -> "list[Image]":
    """Return images (N, H, W, 3), uint8, as Pillow's."""
    from PIL import Image

    return [Image.fromarray(image) for image in pixels]
