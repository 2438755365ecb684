"""The file of an animation: frames encoded with their parameters, and read back."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.images.animation import decode_animation, encode_animation, is_mp4
from ldmrt.runtime.images.exif import OWN, exif_of
from ldmrt.runtime.images.png import notes

from .fields import opened


def encode_with_parameters(frames: Iterable[NDArray[np.uint8]], kind: str, fps: float, facts: JsonObject) -> bytes:
    """Return an animation as a file with its parameters.

    Args:
        frames: Images of one size, (H, W, 3), at least one.
        kind: "GIF", "WEBP" or "MP4".
        fps: Frames a second.
        facts: The parameters.
    """
    texts = notes(facts)
    return encode_animation(frames, kind, fps, texts[OWN], exif_of(texts).tobytes())


def kind_of(where: str, path: Path) -> str:
    """Return the format of an animation or an image, such as "GIF", "PNG" or "MP4".

    Raises:
        LdmrtError: It cannot be read; `where` is what the error begins with.
    """
    if is_mp4(path):
        return "MP4"
    with opened(where, path, decoded=False) as image:
        return str(image.format)


def size_of(where: str, path: Path) -> tuple[int, int]:
    """Return the width and height of an image or an animation.

    Raises:
        LdmrtError: It cannot be read; `where` is what the error begins with.
    """
    if not is_mp4(path):
        with opened(where, path) as image:
            return image.size
    with path.open("rb") as file:
        frame = next(frames_of(where, path, file, "MP4", 1, 1), None)
    if frame is None:
        raise LdmrtError(where, f"cannot read {path}", expected="an animation", found="no frames")
    return frame.shape[1], frame.shape[0]


def frames_of(where: str, path: Path, file: BinaryIO, kind: str, fps: float, count: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of an animation, (H, W, 3).

    Args:
        where: What an error begins with.
        path: The file's name, for errors.
        file: The open file.
        kind: "GIF", "WEBP" or "MP4".
        fps: The frames a second that it was encoded with.
        count: How many were encoded.

    Raises:
        LdmrtError: It is damaged.
    """
    try:
        yield from decode_animation(file, kind, fps, count)
    except Exception as error:  # Pillow and FFmpeg raise errors of many kinds for what is damaged
        raise LdmrtError(where, f"cannot read {path}", expected="an animation", found=first_line(error)) from None
