"""Read the size of an image, and compute the size of what is made of it."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from .reading import MAX_PIXELS, Size, orientation_of, read

if TYPE_CHECKING:
    from PIL.Image import Image

# Formats whose header has the size that `read` gives, but for EXIF's orientation, which a PNG is decoded for.
HEADED = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
TURNED = (5, 6, 7, 8)  # EXIF's orientations that change the sides


# Widths that FLUX.1 Kontext was trained on, by the heights, in pixels; each stands for its turned size too.
KONTEXT_SIZES = {1024: 1024, 944: 1104, 880: 1184, 832: 1248, 800: 1328, 752: 1392, 720: 1456, 688: 1504, 672: 1568}


def kontext_size(size: Size) -> Size:
    """Return the height and width that FLUX.1 Kontext was trained on whose ratio is nearest to that of an image."""
    sides = [(wide, high) for pair in KONTEXT_SIZES.items() for wide, high in (pair, pair[::-1])]
    width, height = min(sides, key=lambda each: (abs(size[1] / size[0] - each[0] / each[1]), each))
    return height, width


def enlarged_size(size: Size, factor: int, enlarges: int = 1) -> Size:
    """Return height and width, multiples of `factor`, of what is made of an image by enlarging it so many times."""
    unit = max(1, factor // enlarges)
    return (size[0] - size[0] % unit) * enlarges, (size[1] - size[1] % unit) * enlarges


def image_size(what: str, image: object) -> Size:
    """Return the height and width of an image as `read` gives it, without decoding files of common formats.

    Args:
        what: The purpose of the image, for errors.
        image: An item of `reading.split`.

    Raises:
        LdmrtError: It cannot be read.
    """
    from PIL import Image

    if isinstance(image, Path):
        with contextlib.suppress(Exception), Image.open(image) as file:  # `read` says what is wrong
            if file.format in HEADED and file.width * file.height <= MAX_PIXELS:
                return _upright(file)
    elif isinstance(image, Image.Image) and not getattr(image, "tile", None):  # decoded
        return _upright(image)
    opened = read(what, image)
    return opened.height, opened.width


def _upright(image: "Image") -> Size:
    """Return the height and width of a PIL image once it is turned as EXIF says."""
    turned = image.width != image.height and orientation_of(image) in TURNED
    return (image.width, image.height) if turned else (image.height, image.width)
