"""Decode every image of a folder before training, so that none stops it half-way."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import PIL

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.file_cache import FileCache

from .buckets import nearest
from .captioned import Shape, read_image, upright_shape
from .sources.files import File, Files, state_of

ENLARGED = 2  # how many times an image may be enlarged, by default
BLOCK = 256  # files that are queued at once


@dataclass(frozen=True)
class Verdict:
    """States whether an image can be used: its width and height, what is wrong with its file, or that it is small."""

    file_name: str
    shape: Shape | None = None
    unreadable: str | None = None
    small: str | None = None


def check_images(
    folder: Path,
    names: list[str],
    size: int,
    shapes: Sequence[Shape] = (),
    files: Files | None = None,
    most: float = ENLARGED,
) -> Iterator[Verdict]:
    """Decode each image once, in parallel; those that were whole before and have not changed are not read again.

    Args:
        folder: The folder that the names are of, or the path of their archives.
        names: The images' files.
        size: The size of the training, in pixels.
        shapes: Its shapes, of which each image gets the nearest; squares by default.
        files: Finds the file of an image by its name; None where it is the folder's.
        most: How many times an image may be enlarged.
    """
    shapes, find = shapes or [(size, size)], files or folder.joinpath
    known, seen = FileCache("images", folder, PIL.__version__), iter(dict.fromkeys(names))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while block := list(islice(seen, BLOCK)):
            yield from pool.map(lambda name: _verdict(name, find(name), size, shapes, known, most), block)
    known.keep()


def _verdict(name: str, file: File, size: int, shapes: Sequence[Shape], known: FileCache, most: float) -> Verdict:
    """Judge one image, by the cache where its file has not changed."""
    try:
        state, count = state_of(file)
        if count == 0:
            return Verdict(name, unreadable=f"{name} is empty")
        shape = _parsed(known.get(name, state)) if state else None  # of an image that was whole
        if shape is None:
            shape = upright_shape(file, read_image(file, size).size)
        if state:
            known.add(name, state, "{}x{}".format(*shape))
    except (LdmrtError, OSError) as error:
        reason = getattr(error, "found", None) or getattr(error, "strerror", None) or error
        return Verdict(name, unreadable=f"{name} cannot be read ({reason})")
    target = nearest(shapes, shape)
    if any(side * most < to for side, to in zip(shape, target, strict=True)):
        sides = f"{name} is {min(shape)} pixels along its shorter side"
        return Verdict(name, shape, small=f"{sides}, which --size {size} enlarges more than {most:g} times")
    return Verdict(name, shape)


def _parsed(value: object) -> Shape | None:
    """Return the width and height that the cache holds; None where it holds none."""
    width, _, height = value.partition("x") if isinstance(value, str) else ("", "", "")
    return (
        (int(width), int(height)) if width.isdecimal() and height.isdecimal() and int(width) and int(height) else None
    )
