"""Captioned pictures for training: a stream of samples, and the stream of a folder of one's own.

`draw(seed, index)` gives the same sample whenever and in whatever order it is asked for, and every entry of the data
set once an epoch.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmrt.runtime.errors import LdmrtError

from .decoding import read_image
from .metadata import METADATA, Row, read_metadata, refuse
from .order import entry

SIZE = 64  # pixels
Pixels = NDArray[np.uint8]  # (H, W, 3)


@dataclass(frozen=True)
class Sample:
    """One captioned picture, decoded when it is first asked for. Samples with the same `key` have the same picture."""

    source: Pixels | Callable[[], Pixels] = field(repr=False)
    caption: str
    key: tuple

    @cached_property
    def picture(self) -> Pixels:
        """The pixels (H, W, 3); an `LdmrtError` where the file cannot be read."""
        return self.source() if callable(self.source) else self.source


def name_of(sample: Sample) -> str:
    """Name a sample by its key, for a message."""
    return " ".join(map(str, sample.key))


class Captioned(Protocol):
    """A stream of captioned pictures."""

    def draw(self, seed: int, index: int) -> Sample: ...

    def caption(self, seed: int, index: int) -> str: ...


def generator(*key: int) -> np.random.Generator:
    """The random numbers of one sample: a counter-based generator keyed by up to two numbers."""
    return np.random.Generator(np.random.Philox(key=np.array([*key, 0][:2], np.uint64)))


def digest(rows: Sequence[object]) -> str:
    """Name what a data set holds by a hash, so that a resumed run can tell whether it has the same one."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ImageFolder:
    """A folder of one's own: `metadata.jsonl` with `file_name` and `text`, as Hugging Face's imagefolder has it.

    Pictures are laid on white, cropped to a centred square and resized. In the place of a file in `skipped` comes the
    next of the stream.
    """

    folder: Path
    rows: tuple[Row, ...] = field(repr=False)
    size: int = SIZE
    skipped: frozenset[str] = field(default=frozenset(), repr=False)

    @classmethod
    def open(cls, folder: Path, *, size: int = SIZE) -> "ImageFolder":
        """Read metadata.jsonl; every line must have a caption and name a file inside the folder."""
        rows, problems = read_metadata(folder)
        if problems:
            raise refuse(folder, problems)
        return cls(folder, tuple(rows), size)

    def __post_init__(self) -> None:
        if not len(self):
            problem = "names no image that can be used" if self.rows else "is empty"
            raise LdmrtError("data", f"{self.folder / METADATA} {problem}")

    def __len__(self) -> int:
        """How many captioned pictures an epoch has."""
        return sum(row.file_name not in self.skipped for row in self.rows)

    @property
    def digest(self) -> str:
        """The hash of names and captions."""
        return digest([(row.file_name, row.text) for row in self.rows])

    def draw(self, seed: int, index: int) -> Sample:
        """Sample `index` of the stream that `seed` names."""
        row = self._row(seed, index)
        return Sample(partial(square, self.folder / row.file_name, self.size), row.text, (row.file_name,))

    def caption(self, seed: int, index: int) -> str:
        """The caption of `draw`."""
        return self._row(seed, index).text

    def _row(self, seed: int, index: int) -> Row:
        while (row := self.rows[entry(seed, index, len(self.rows))]).file_name in self.skipped:
            index += 1
        return row


def square(path: Path, size: int) -> Pixels:
    """The centred square of an image file, resized to `size` pixels."""
    image = read_image(path, size)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    cropped = image.crop((left, top, left + side, top + side))
    return np.asarray(cropped.resize((size, size), Image.Resampling.LANCZOS))
