"""Image files as training sees them: upright, on white, in 8-bit RGB."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.errors import first_line

LAYERED = ("MPO", "PSD")  # formats whose other frames belong to the first: previews, layers
PROGRAMS = ("EPS", "WMF")  # formats that Pillow hands to a program outside
DRAFT = 2  # a JPEG may be decoded at a fraction of its size that has this many times the pixels wanted along a side


def read_image(path: Path, least: int) -> Image.Image:
    """Read an image; a JPEG may come smaller, though with no side below twice `least`."""
    try:
        with Image.open(path) as opened:
            _refuse_format(opened)
            opened.draft(None, (DRAFT * least, DRAFT * least))
            return _on_white(_eight_bit(ImageOps.exif_transpose(opened)))
    except Exception as error:  # Pillow's decoders raise many classes
        found = "more pixels than memory holds" if isinstance(error, MemoryError) else first_line(error)
        raise LdmrtError("data", f"cannot read {path}", expected="an image", found=found) from None


def shorter_side(path: Path) -> int:
    """Pixels along the shorter side of an image, of which only the header is read."""
    with Image.open(path) as opened:
        return min(opened.size)


def _refuse_format(image: Any) -> None:
    if image.format in PROGRAMS:
        raise ValueError(f"{image.format} is not supported")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in LAYERED:
        raise ValueError(f"{frames} frames, of an animation or of pages")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale greys of 16 and 32 bits and floats to 8 bits from the range of their own kind."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    grey = np.asarray(image, np.float64)
    if not np.isfinite(grey).all():
        raise ValueError("a pixel is not finite")
    tops = [1.0, 255.0, 65535.0] if image.mode == "F" else [65535.0, 2.0**31 - 1]
    top = next((top for top in tops if grey.max() <= top), grey.max())
    return Image.fromarray(np.rint(grey.clip(0, top) * (255 / top)).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
