"""Grids of images, and image files that hold the parameters they were made with."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.files.writing import write_atomically
from ldmrt.runtime.images.exif import EXIF_BYTES, exif_of
from ldmrt.runtime.images.png import encode_png
from ldmrt.tools.options.images import IMAGES

from .image_paths import FORMATS

OPTIONS: dict[str, dict[str, int]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
LONGEST = {"JPEG": 65535, "WEBP": 16383}  # pixels a side
GAP = 2  # pixels between two images of a grid


def grid(images: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Arrange images in rows of `columns`, with white gaps of `GAP` pixels between them.

    Args:
        images: (N, H, W, 3), uint8.
        columns: Images in a row.

    Returns:
        One image (rows * (H + GAP) - GAP, columns * (W + GAP) - GAP, 3), uint8.
    """
    n, height, width, _ = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + GAP), (i % columns) * (width + GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet


def save_png(path: Path, image: NDArray[np.uint8], notes: Mapping[str, object] | None = None) -> None:
    """Write an image (H, W, 3), uint8, as PNG with the notes as text chunks."""
    encoded = encode_png(image, notes)
    with write_atomically(path) as file:
        file.write(encoded)


def save_depth(path: Path, depth: NDArray[np.uint16]) -> None:
    """Write a depth (H, W), uint16, as a grey PNG of 16 bits."""
    buffer = io.BytesIO()
    Image.fromarray(depth).save(buffer, "PNG")
    with write_atomically(path) as file:
        file.write(buffer.getvalue())


def save_image(path: Path, image: NDArray[np.uint8], notes: Mapping[str, str] | None = None) -> None:
    """Write an image (H, W, 3), uint8, as PNG, JPEG or WebP by the suffix of `path`.

    The notes are text chunks of a PNG; in the EXIF of the others, "parameters" is the user comment and "ldmrt" the
    maker note.

    Raises:
        LdmrtError: The image has more pixels along a side than the format allows.
    """
    kind = FORMATS[path.suffix.lower()]
    if kind == "PNG":
        save_png(path, image, notes)
        return
    if max(image.shape[:2]) > LONGEST[kind]:
        expected, found = f"at most {LONGEST[kind]} pixels a side", f"{image.shape[1]}x{image.shape[0]}"
        raise LdmrtError("generate", f"{path} is too large for {kind}", expected=expected, found=found, hint="a .png")
    exif = exif_of(notes or {})
    if kind == "JPEG" and len(exif.tobytes()) > EXIF_BYTES:
        warnings.warn(
            f"{path}: parameters of more than 64 KiB do not fit into a JPEG and are not saved",
            LdmrtWarning,
            stacklevel=2,
        )
        exif = Image.Exif()
    encoded = encode(image, kind, exif)
    with write_atomically(path) as file:
        file.write(encoded)


def encode(image: NDArray[np.uint8], kind: str, exif: Image.Exif | None = None) -> bytes:
    """Return an image (H, W, 3), uint8, as a file of the format "JPEG" or "WEBP"."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, exif=exif or Image.Exif(), **OPTIONS[kind])
    return buffer.getvalue()


def parameters(options: Mapping[str, object], controls: Mapping[str, tuple[object, float]]) -> JsonObject:
    """Return the options as an image's metadata holds them: files by their name alone, without seed and count."""
    plain = {key: names(value) if key in IMAGES else value for key, value in options.items()}
    plain.pop("seed"), plain.pop("count")
    return plain | {"controls": {name: [names(images), scale] for name, (images, scale) in controls.items()}}


def names(paths: object) -> list[str] | str | None:
    """Return the file name of a path, the names of a list of paths, or None for None."""
    if isinstance(paths, list):
        return [Path(path).name for path in paths]
    return None if paths is None else Path(str(paths)).name
