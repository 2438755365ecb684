"""Compute the size of what is made of an image."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]  # height, width


def enlarged_size(image: "Image", factor: int, enlarges: int = 1) -> Size:
    """Return height and width, multiples of `factor`, of what is made of a PIL image by enlarging it so many times."""
    unit = max(1, factor // enlarges)
    return (image.height - image.height % unit) * enlarges, (image.width - image.width % unit) * enlarges
