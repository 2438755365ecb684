"""Images as Pillow has them, from arrays and back."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image


def to_pillow(pixels: NDArray[np.uint8]) -> "list[Image]":
    """Return images (N, H, W, 3), uint8, as Pillow's."""
    from PIL import Image

    return [Image.fromarray(image) for image in pixels]


def from_pillow(images: "Sequence[Image]") -> NDArray[np.uint8]:
    """Return Pillow's images of one size, RGB, as (N, H, W, 3), uint8."""
    return np.stack([np.asarray(image) for image in images])
