"""Compare what was drawn again with the pixels of its file: of an image, or of an animation frame by frame."""

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmrt.runtime.errors import LdmrtError
from ldmrt.tools.console.drawing.embedded.animations import frames_of
from ldmrt.tools.console.drawing.embedded.fields import opened
from ldmrt.tools.console.drawing.images import encode

LOSSY = "JPEG"
Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@dataclass(frozen=True)
class Compared:
    """Holds how far pixels are from those of a file.

    Attributes:
        total: How many bytes of pixels were compared.
        differing: How many of them differ.
        psnr: Of all of them, in dB; infinite where they are identical.
    """

    total: int
    differing: int
    psnr: float


def compare(pairs: Iterable[Pair]) -> Compared:
    """Compare images of the same shape, one pair at a time, such as the frames of two animations."""
    total = differing = squares = 0
    for one, other in pairs:
        apart = one.astype(np.int64) - other
        total, differing = total + apart.size, differing + int(np.count_nonzero(apart))
        squares += int((apart * apart).sum())
    return Compared(total, differing, 10 * math.log10(255.0**2 * total / squares) if squares else math.inf)


def image_pair(path: Path, drawn: NDArray[np.uint8]) -> Pair:
    """Return the pixels of a file, and those of a drawn image: as the file would hold them, where it loses some."""
    with opened("replay", path) as image:
        kind, before = image.format, np.asarray(image.convert("RGB"))
    if kind == LOSSY:
        with Image.open(io.BytesIO(encode(drawn, LOSSY))) as again:
            drawn = np.asarray(again.convert("RGB"))
    return before, drawn


def animation_pairs(path: Path, kind: str, drawn: bytes) -> Iterator[Pair]:
    """Yield the frames of a file beside those of an animation that was encoded as it is.

    Args:
        path: The file.
        kind: Its format, "GIF", "WEBP" or "MP4".
        drawn: What `animations.encode` returned.

    Raises:
        LdmrtError: The file is damaged, or has another number of frames.
    """
    with path.open("rb") as file:
        then, now = (frames_of("replay", path, each, kind) for each in (file, io.BytesIO(drawn)))
        counts = [0, 0]
        for before, again in zip_longest(then, now):
            counts = [counts[0] + (before is not None), counts[1] + (again is not None)]
            if before is not None and again is not None:
                yield before, again
    if counts[0] != counts[1]:
        problem = f"{path} has another number of frames than its record"
        raise LdmrtError("replay", problem, expected=counts[1], found=counts[0])
