"""Images as 256 levels, and as Pillow has them."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image


def levels(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round images (N, H, W, 3), values in [0, 1], to 256 levels."""
    return np.rint(images * 255).astype(np.uint8)


def to_pillow(pixels: NDArray[np.uint8]) -> "list[Image]":
    """Return images (N, H, W, 3), uint8, as Pillow's."""
    from PIL import Image

    return [Image.fromarray(image) for image in pixels]
