"""Read image files as training sees them: upright, on white, in 8-bit RGB, and not animated."""

from pathlib import Path

from PIL import Image

from ldmrt.runtime.images.reading import read_rgb

DRAFT = 2  # a JPEG may be decoded at a fraction of its size that has this many times the pixels wanted along a side


def read_image(path: Path, least: int) -> Image.Image:
    """Read an image; a JPEG may come smaller, though with no side below twice `least`."""
    image: Image.Image = read_rgb("data", path, least=DRAFT * least, animated=False)
    return image


def shorter_side(path: Path) -> int:
    """Return the pixels along the shorter side of an image, of which only the header is read."""
    with Image.open(path) as opened:
        return min(opened.size)
