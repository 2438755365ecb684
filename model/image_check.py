"""Every image of a folder, decoded before training so that none stops it half-way."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import PIL

from ldmrt.runtime import LdmrtError, write_atomically

from .decoding import read_image, shorter_side

ENLARGED = 2  # how many times an image may be enlarged
SETTLED = 2e9  # nanoseconds: a file that is younger may change once more within one tick of its file system's clock
BLOCK = 256  # files that are queued at once


@dataclass(frozen=True)
class Verdict:
    """Whether an image can be used: what is wrong with its file, or that it is too small."""

    file_name: str
    unreadable: str | None = None
    small: str | None = None


def check_images(folder: Path, names: list[str], size: int) -> Iterator[Verdict]:
    """Decode each image once, in parallel; those that were whole before and have not changed are not read again."""
    known, seen = _Known(folder), iter(dict.fromkeys(names))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while block := list(islice(seen, BLOCK)):
            yield from pool.map(lambda name: _verdict(folder, name, size, known), block)
    known.keep()


def _verdict(folder: Path, name: str, size: int, known: "_Known") -> Verdict:
    path = folder / name
    try:
        state = path.stat()
        if not state.st_size:
            return Verdict(name, unreadable=f"{name} is empty")
        if (side := known.side(name, state)) is None:
            read_image(path, size)
            side = shorter_side(path)
            known.add(name, state, side)
    except (LdmrtError, OSError) as error:
        found = getattr(error, "found", None) or getattr(error, "strerror", None) or error
        return Verdict(name, unreadable=f"{name} cannot be read ({found})")
    if side * ENLARGED < size:
        return Verdict(name, small=f"{name} is {side} pixels along its shorter side, which --size {size} enlarges more "
                                   f"than {ENLARGED} times")  # fmt: skip
    return Verdict(name)


class _Known:
    """The images that were whole, by size and time of their files, in the user's cache where there is one."""

    def __init__(self, folder: Path) -> None:
        self.path: Path | None = None
        self.entries: dict[str, list[int]] = {}
        self.added: dict[str, list[int]] = {}
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # of no home, and of a damaged file
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            key = hashlib.sha256(f"{folder.resolve()}\n{PIL.__version__}".encode(errors="replace")).hexdigest()[:32]
            self.path = cache / "ldmrt" / "images" / f"{key}.json"
            entries = json.loads(self.path.read_text(encoding="utf-8"))
            self.entries = entries if isinstance(entries, dict) else {}

    def side(self, name: str, state: os.stat_result) -> int | None:
        """Pixels along the shorter side of an image that was whole and has not changed since."""
        entry = self.entries.get(name)
        if not isinstance(entry, list) or entry[:-1] != _stamp(state) or not isinstance(entry[-1], int):
            return None
        return entry[-1]

    def add(self, name: str, state: os.stat_result, side: int) -> None:
        if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > SETTLED:
            self.added[name] = [*_stamp(state), side]

    def keep(self) -> None:
        """Write the cache, where that is possible."""
        if self.path is not None and self.added:
            with contextlib.suppress(OSError), write_atomically(self.path) as file:
                file.write(json.dumps({**self.entries, **self.added}).encode())


def _stamp(state: os.stat_result) -> list[int]:
    return [state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns]
