"""Define captioned images for training: a stream of samples, and the stream of a folder of one's own.

`draw(seed, index)` gives the same sample whenever and in whatever order it is called, and every entry of the data
set once an epoch.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.images.reading import read_rgb

from .listing import read_listing
from .metadata import CAPTION, METADATA, Row, refuse
from .order import entry

SIZE = 64  # pixels
ORIENTATION, SIDEWAYS = 0x0112, 5  # EXIF's tag, and its first value of an image that lies on its side
DRAFT = 2  # a JPEG may be decoded at a fraction of its size that has this many times the pixels wanted along a side
Pixels = NDArray[np.uint8]  # (H, W, 3)
Key = tuple[object, ...]  # names the image of a sample


@dataclass(frozen=True)
class Sample:
    """Holds a captioned image, decoded when it is first needed. Samples with the same `key` have the same image.

    `sizes` returns what SDXL is told of it, in pixels: the original's height and width, and the top and left of the
    part that is seen, in the original scaled as that part is; None for an image that is whole.
    """

    source: Pixels | Callable[[], Pixels] = field(repr=False)
    caption: str
    key: Key
    sizes: Callable[[], tuple[int, ...]] | None = field(default=None, repr=False)

    @cached_property
    def image(self) -> Pixels:
        """The pixels (H, W, 3), uint8 RGB; an `LdmrtError` where the file cannot be read."""
        return self.source() if callable(self.source) else self.source


def name_of(sample: Sample) -> str:
    """Name a sample by its key, for a message."""
    return " ".join(map(str, sample.key))


class Captioned(Protocol):
    """Streams captioned images, each place of which can be computed alone."""

    def draw(self, seed: int, index: int) -> Sample:
        """Return sample `index` of the stream that `seed` names."""

    def caption(self, seed: int, index: int) -> str:
        """Return the caption of `draw` without its image."""


def generator(*key: int) -> np.random.Generator:
    """Return a counter-based generator (Philox: Salmon et al. 2011) for one sample, keyed by one or two numbers."""
    return np.random.Generator(np.random.Philox(key=np.array([*key, 0][:2], np.uint64)))


def digest(rows: Sequence[object]) -> str:
    """Name what a data set holds by a hash, so that a resumed run can tell whether it has the same one."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ImageFolder:
    """Streams a folder of one's own, with metadata as in Hugging Face's imagefolder or captions beside the images.

    `listed` is the name of the metadata, "" where there is none. Of several captions each sample draws one.
    Images are laid on white, cropped to a centred square and resized to `size` pixels. In the place of a file in
    `skipped` comes the next of the stream.
    """

    folder: Path
    rows: tuple[Row, ...] = field(repr=False)
    size: int = SIZE
    skipped: frozenset[str] = field(default=frozenset(), repr=False)
    listed: str = METADATA

    @classmethod
    def open(cls, folder: Path, *, size: int = SIZE, prompt: str | None = None, column: str = CAPTION) -> "ImageFolder":
        """Read the captions of a folder, see `read_listing`.

        Args:
            folder: The folder of the images.
            size: Pixels along a side of the samples' images.
            prompt: The caption of images that have none, in a folder without metadata.
            column: The column of the captions in the metadata.

        Returns:
            The stream; no image has been opened.

        Raises:
            LdmrtError: A line has no caption, or names no file inside the folder; an `InvalidLines` where several do.
        """
        listed, rows, problems = read_listing(folder, prompt, column)
        if problems:
            raise refuse(folder / listed, problems)
        return cls(folder, tuple(rows), size, listed=listed)

    def __post_init__(self) -> None:
        """Refuse a folder that names no image, or whose images are all skipped."""
        if not len(self):
            problem = "names no image that can be used" if self.rows else "is empty"
            raise LdmrtError("data", f"{self.folder / self.listed} {problem}")

    def __len__(self) -> int:
        """Count the captioned images of an epoch."""
        return sum(row.file_name not in self.skipped for row in self.rows)

    @property
    def digest(self) -> str:
        """A hash of names and captions, see `digest`."""
        return digest([(row.file_name, *row.texts) for row in self.rows])

    def fraction(self, name: str) -> float:
        """Return a number from 0 to 1 that the bytes of an image's file alone decide; 1 where it cannot be read."""
        try:
            content = (self.folder / name).read_bytes()
        except OSError:
            return 1.0
        return float(int.from_bytes(hashlib.sha256(content).digest()[:8], "big")) / 2.0**64

    def draw(self, seed: int, index: int) -> Sample:
        """Return sample `index` of the stream that `seed` names; its image is decoded later."""
        row, caption = self._row(seed, index)
        path = self.folder / row.file_name
        sizes = partial(sizes_of_square, path, self.size)
        return Sample(partial(square, path, self.size), caption, (row.file_name,), sizes)

    def caption(self, seed: int, index: int) -> str:
        """Return the caption of `draw` without its image."""
        return self._row(seed, index)[1]

    def _row(self, seed: int, index: int) -> tuple[Row, str]:
        """Return the first row of the stream from `index` on that is not skipped, and the caption of this sample."""
        while (row := self.rows[entry(seed, index, len(self.rows))]).file_name in self.skipped:
            index += 1
        return row, row.texts[generator(seed, index).integers(len(row.texts)) if row.others else 0]


def square(path: Path, size: int) -> Pixels:
    """Crop an image file to its centred square and resize that: (size, size, 3), uint8 RGB."""
    image = read_image(path, size)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    cropped = image.crop((left, top, left + side, top + side))
    return np.asarray(cropped.resize((size, size), Image.Resampling.LANCZOS))


@lru_cache(maxsize=100_000)
def sizes_of_square(path: Path, size: int) -> tuple[int, int, int, int]:
    """Return the height and width of an image, upright, and the top and left of its `square` where that is cropped."""
    with Image.open(path) as opened:
        turned = opened.getexif().get(ORIENTATION, 1) >= SIDEWAYS
        height, width = opened.size if turned else opened.size[::-1]
    side = min(height, width)
    return height, width, (height - side) // 2 * size // side, (width - side) // 2 * size // side


def read_image(path: Path, least: int) -> Image.Image:
    """Read an image, upright, on white and in 8-bit RGB; a JPEG may come smaller, with no side below twice `least`."""
    image: Image.Image = read_rgb("data", path, least=DRAFT * least, animated=False)
    return image


def shorter_side(path: Path) -> int:
    """Return the pixels along the shorter side of an image, of which only the header is read."""
    with Image.open(path) as opened:
        return min(opened.size)
