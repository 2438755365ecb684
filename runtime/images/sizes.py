"""Compute the size of what is made of an image."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]  # height, width


# Widths that FLUX.1 Kontext was trained on, by the heights, in pixels; each stands for its turned size too.
KONTEXT_SIZES = {1024: 1024, 944: 1104, 880: 1184, 832: 1248, 800: 1328, 752: 1392, 720: 1456, 688: 1504, 672: 1568}


def kontext_size(size: Size) -> Size:
    """Return the height and width that FLUX.1 Kontext was trained on whose ratio is nearest to that of an image."""
    sides = [(wide, high) for pair in KONTEXT_SIZES.items() for wide, high in (pair, pair[::-1])]
    width, height = min(sides, key=lambda each: (abs(size[1] / size[0] - each[0] / each[1]), each))
    return height, width


def enlarged_size(image: "Image", factor: int, enlarges: int = 1) -> Size:
    """Return height and width, multiples of `factor`, of what is made of a PIL image by enlarging it so many times."""
    unit = max(1, factor // enlarges)
    return (image.height - image.height % unit) * enlarges, (image.width - image.width % unit) * enlarges
