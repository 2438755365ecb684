"""Pixels of every type as 8 bits a channel: greys of 12, 16 and 32 bits, floats, palettes, CMYK, keyed transparency."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tensors import Array

if TYPE_CHECKING:
    from PIL.Image import Image

BAND = 256  # rows scaled or composed at once
# Pixels of these types may hold any of these ranges: white is the least of them that is not exceeded.
WHITE = {"f": (1, 255, 65535), "i": (1, 255, 65535, 2**31 - 1), "u": (1, 255, 65535, 2**32 - 1)}
OVERSHOOT = 0.25  # what resampling with Lanczos may have added to a range of floats, below and above
DARKEST = 1 / 32  # of a range of floats: the brightest pixel of an image that is not taken for one of another range
PHOTOMETRIC, BITS, SAMPLE_FORMAT = 262, 258, 339  # tags of TIFF
WHITE_IS_ZERO, SIGNED = 0, 2  # values of the first and the last
# Greys of TIFF that Pillow has a decoder for and does not open, by what it knows a file by.
TIFF_GREYS = {
    (b"MM", 1, (1,), 1, (32,), ()): ("I", "I;32B"),
    (b"MM", 0, (1,), 1, (16,), ()): ("I;16B", "I;16B"),
    (b"II", 1, (3,), 1, (64,), ()): ("F", "F;64F"),
    (b"MM", 1, (3,), 1, (64,), ()): ("F", "F;64BF"),
}


def open_all_greys() -> None:
    """Let Pillow open the greys of TIFF that it can decode."""
    from PIL.TiffImagePlugin import OPEN_INFO

    for key, modes in TIFF_GREYS.items():
        OPEN_INFO.setdefault(key, modes)


def in_8_bits(what: str, name: str, image: "Image | Array") -> "Image":
    """Return a PIL image or an array (H, W) or (H, W, 1 to 4) as a PIL image of the mode L, LA, RGB or RGBA.

    Integers of 8 and 16 bits are scaled from the range of their type, whatever the brightest pixel is; floats and wider
    integers from the least of the ranges in `WHITE` that holds them. A PIL image that needs nothing is returned itself.
    """
    from PIL import Image

    if isinstance(image, np.ndarray):
        levels = scaled(what, name, image)
        return Image.fromarray(levels[..., 0] if levels.ndim == 3 and levels.shape[2] == 1 else levels)
    if image.mode in ("I", "F") or image.mode.startswith("I;") or _has_signed_bytes(image):
        return _grey(what, name, image)
    if image.mode == "La":
        return image.convert("LA")
    if image.has_transparency_data:
        return image if image.mode in ("LA", "RGBA") else image.convert("RGBA")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def scaled(what: str, name: str, values: Array, white: float | None = None) -> NDArray[np.uint8]:
    """Scale values from 0 to `white`, by default that of their type or range, to 0 to 255."""
    if values.dtype == np.uint8 and white is None:
        return values
    white = _white(what, name, values) if white is None else white
    levels = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), BAND):
        band = values[top : top + BAND].astype(np.float64)
        levels[top : top + BAND] = np.rint((band * (255 / white)).clip(0, 255))
    return levels


def on_white(image: "Image") -> "Image":
    """Compose an image of the mode LA or RGBA on white; another one is returned as it is."""
    if not image.mode.endswith("A"):
        return image
    from PIL import Image

    mode = image.mode[:-1]
    composed = Image.new(mode, image.size, "white")
    for top in range(0, image.height, BAND):
        box = (0, top, image.width, min(top + BAND, image.height))
        band = image.crop(box)
        composed.paste(band.convert(mode), box, band.getchannel("A"))
    return composed


def transposed(image: "Image", orientation: int) -> "Image":
    """Turn an image upright that EXIF says is not; a turned image has no metadata left, so it is not turned again."""
    from PIL.Image import Transpose as T

    methods = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_270,
               7: T.TRANSVERSE, 8: T.ROTATE_90}  # fmt: skip
    if orientation not in methods:
        return image
    upright = image.transpose(methods[orientation])
    upright.info = {}
    return upright


def _white(what: str, name: str, values: Array) -> float:
    """Return the value of white: that of the values' type, or of the least range that holds them."""
    kind, width = values.dtype.kind, values.dtype.itemsize
    if kind == "b":
        return 1
    if kind == "u" and width <= 2:
        return float(np.iinfo(values.dtype).max)
    low, high = float(values.min()), float(values.max())
    found = f"{low:.4g} to {high:.4g}"
    if kind == "f":
        for white in WHITE["f"]:
            dark = white > 1 and high < white * DARKEST
            if -OVERSHOOT * white <= low and high <= (1 + OVERSHOOT) * white and not dark:
                return white
        expected = "numbers from 0 to 1, 255 or 65535"
        raise LdmrtError(what, f"cannot read {name}", expected=expected, found=found)
    if low < 0:
        raise LdmrtError(what, f"cannot read {name}", expected="no negative numbers", found=found)
    most = np.iinfo(values.dtype).max
    return next((white for white in WHITE[kind] if high <= white < most), float(most))


def _has_signed_bytes(image: "Image") -> bool:
    """Tell whether an image is a TIFF of bytes with a sign, which Pillow reads as if they had none."""
    return image.mode == "L" and SIGNED in getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, ())


def _grey(what: str, name: str, image: "Image") -> "Image":
    """Convert a grey image of more than 8 bits, or of 8 with a sign."""
    from PIL import Image

    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    bits, white = tags.get(BITS, (0,))[0], None
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        values = values.astype(np.uint16)
    elif image.mode == "I" and bits in (16, 32):  # Pillow reads every integer as one of 32 bits with a sign
        values = values.astype(f"{'i' if SIGNED in tags.get(SAMPLE_FORMAT, ()) else 'u'}{bits // 8}")
    elif image.mode == "L":
        values = values.view(np.int8)
    elif image.mode.startswith("I;") and bits == 12:
        white = 4095.0
    levels = Image.fromarray(scaled(what, name, values, white))
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow inverts 8 bits alone
        levels = Image.fromarray(255 - np.asarray(levels))
    key = image.info.get("transparency")
    if isinstance(key, int):
        levels.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return levels
