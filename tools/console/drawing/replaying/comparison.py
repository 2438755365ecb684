"""Compare what was drawn again with the pixels of its file: of an image, or of an animation frame by frame."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.parity.metrics import psnr_of
from ldmrt.tools.console.drawing.embedded.animations import frames_of
from ldmrt.tools.console.drawing.embedded.fields import opened
from ldmrt.tools.console.drawing.images import encode

from .records import FrameRecord

LOSSY = "JPEG"
Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@dataclass(frozen=True)
class Comparison:
    """Holds how far pixels are from those of a file.

    Attributes:
        total: How many bytes of pixels were compared.
        differing: How many of them differ.
        psnr: Of all of them, in dB; infinite where they are identical.
    """

    total: int
    differing: int
    psnr: float


def compare(pairs: Iterable[Pair]) -> Comparison:
    """Compare pairs of images, such as the frames of two animations; the images of a pair have the same shape."""
    total = differing = squares = 0
    for before, now in pairs:
        difference = before.astype(np.int32) - now
        total, differing = total + difference.size, differing + int(np.count_nonzero(difference))
        squares += int((difference * difference).sum(dtype=np.int64))
    return Comparison(total, differing, psnr_of(squares / total))


def image_pair(path: Path, drawn: NDArray[np.uint8]) -> Pair:
    """Return the pixels of a file, and those of a drawn image: as the file would hold them, where it loses some.

    Raises:
        LdmrtError: The file cannot be read.
    """
    with opened("replay", path) as image:
        kind, before = image.format, np.asarray(image.convert("RGB"))
    if kind == LOSSY:
        with Image.open(io.BytesIO(encode(drawn, LOSSY))) as again:
            drawn = np.asarray(again.convert("RGB"))
    return before, drawn


def check_frames(path: Path, frames: FrameRecord) -> None:
    """Refuse, before anything is drawn, an animation whose number of frames differs from its record's.

    Raises:
        LdmrtError: It is damaged, or the numbers differ.
    """
    with path.open("rb") as file:
        found = sum(1 for _ in islice(_decoded(path, file, frames), frames.count + 1))
    if found != frames.count:
        problem = f"{path} has another number of frames than its record"
        number = found if found < frames.count else f"more than {frames.count}"
        raise LdmrtError("replay", problem, expected=frames.count, found=number)


def animation_pairs(path: Path, frames: FrameRecord, drawn: bytes) -> Iterator[Pair]:
    """Yield each frame of a file beside that of an animation which was encoded as it is.

    Args:
        path: The file, whose frames `check_frames` has counted.
        frames: What its record says of them.
        drawn: What `encode_with_parameters` returned.

    Raises:
        LdmrtError: The file is damaged.
    """
    with path.open("rb") as file:
        yield from zip(*(_decoded(path, each, frames) for each in (file, io.BytesIO(drawn))), strict=True)


def _decoded(path: Path, file: BinaryIO, frames: FrameRecord) -> Iterator[NDArray[np.uint8]]:
    return frames_of("replay", path, file, frames.kind, frames.fps, frames.count)
