"""Grids of pictures, and PNG files that tell how they were made."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldmrt.runtime import write_atomically


def grid(pictures: NDArray[np.uint8], columns: int, gap: int = 2) -> NDArray[np.uint8]:
    """Pictures (N, H, W, 3) in rows of `columns` with white gaps: one picture (H', W', 3)."""
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
