"""Grids of images, and image files that tell how they were made."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.files.writing import write_atomically

from .image_paths import FORMATS

OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
LONGEST = {"JPEG": 65535, "WEBP": 16383}  # pixels a side
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
EXIF_BYTES = 65527  # what a JPEG has room for in one segment


def grid(pictures: NDArray[np.uint8], columns: int, gap: int = 2) -> NDArray[np.uint8]:
    """Images (N, H, W, 3) in rows of `columns` with white gaps: one image (H', W', 3)."""
    n, height, width, _ = pictures.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def save_png(path: Path, picture: NDArray[np.uint8], notes: Mapping[str, object] | None = None) -> None:
    """Write (H, W, 3) as PNG, with the notes as text chunks."""
    info = PngInfo()
    for key, value in (notes or {}).items():
        info.add_itxt(key, str(value))
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", pnginfo=info)
    with write_atomically(path) as file:
        file.write(buffer.getvalue())


def save_image(path: Path, image: NDArray[np.uint8], notes: Mapping[str, object] | None = None) -> None:
    """Write (H, W, 3) as the PNG, JPEG or WebP that the suffix says, with the notes as text chunks of a PNG, or as the
    user comment in the others' EXIF.
    """
    kind = FORMATS[path.suffix.lower()]
    if kind == "PNG":
        save_png(path, image, notes)
        return
    if max(image.shape[:2]) > LONGEST[kind]:
        expected, found = f"at most {LONGEST[kind]} pixels a side", f"{image.shape[1]}x{image.shape[0]}"
        raise LdmrtError("generate", f"{path} is too large for {kind}", expected=expected, found=found, hint="a .png")
    exif = _user_comment("\n".join(map(str, (notes or {}).values())))
    if kind == "JPEG" and len(exif.tobytes()) > EXIF_BYTES:
        warnings.warn(f"{path}: parameters of more than 64 KiB have no place in a JPEG", LdmrtWarning, stacklevel=2)
        exif = Image.Exif()
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, exif=exif, **OPTIONS[kind])
    with write_atomically(path) as file:
        file.write(buffer.getvalue())


def _user_comment(text: str) -> Image.Exif:
    """EXIF with a user comment: ASCII where that is enough, else UTF-16, which most readers take as big-endian."""
    exif = Image.Exif()
    if text:
        code, encoding = (b"ASCII\0\0\0", "ascii") if text.isascii() else (b"UNICODE\0", "utf-16-be")
        exif[EXIF_IFD] = {USER_COMMENT: code + text.encode(encoding)}
    return exif
