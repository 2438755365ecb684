"""Decode every image of a folder before training, so that none stops it half-way."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import PIL

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.file_cache import FileCache

from .captioned import read_image, shorter_side

ENLARGED = 2  # how many times an image may be enlarged
BLOCK = 256  # files that are queued at once


@dataclass(frozen=True)
class Verdict:
    """States whether an image can be used: what is wrong with its file, or that it is too small."""

    file_name: str
    unreadable: str | None = None
    small: str | None = None


def check_images(folder: Path, names: list[str], size: int) -> Iterator[Verdict]:
    """Decode each image once, in parallel; those that were whole before and have not changed are not read again."""
    known, seen = FileCache("images", folder, PIL.__version__), iter(dict.fromkeys(names))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while block := list(islice(seen, BLOCK)):
            yield from pool.map(lambda name: _verdict(folder, name, size, known), block)
    known.keep()


def _verdict(folder: Path, name: str, size: int, known: FileCache) -> Verdict:
    """Judge one image, by the cache where its file has not changed."""
    path = folder / name
    try:
        state = path.stat()
        if not state.st_size:
            return Verdict(name, unreadable=f"{name} is empty")
        side = known.get(name, state)  # along the shorter side of an image that was whole
        if not isinstance(side, int):
            read_image(path, size)
            side = shorter_side(path)
        known.add(name, state, side)
    except (LdmrtError, OSError) as error:
        reason = getattr(error, "found", None) or getattr(error, "strerror", None) or error
        return Verdict(name, unreadable=f"{name} cannot be read ({reason})")
    if side * ENLARGED < size:
        sides = f"{name} is {side} pixels along its shorter side"
        return Verdict(name, small=f"{sides}, which --size {size} enlarges more than {ENLARGED} times")
    return Verdict(name)
