"""Define captioned images for training: a stream of samples, and the stream of a folder of one's own.

`draw(seed, index)` gives the same sample whenever and in whatever order it is called, and every entry of the data
set once an epoch.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.images.reading import orientation_of, read_rgb

from .augmentation import CENTRE, Augmentation, View
from .metadata import CAPTION, METADATA, Row, refuse
from .order import entry
from .sources.files import File, Files, content_of, to_open
from .sources.source import read_source
from .wording import Wording

SIZE = 64  # pixels
DRAFT = 2  # a JPEG may be decoded at a fraction of its size that has this many times the pixels wanted along a side
SCALED = ("JPEG", "MPO")  # formats that may be decoded at a fraction of their size
TURNED = range(5, 9)  # EXIF's orientations of images that lie on a side
Pixels = NDArray[np.uint8]  # (H, W, 3)
Key = tuple[object, ...]  # names the image of a sample
Shape = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Sizes:
    """States how an image was made of its file, each as height and width in pixels, as SDXL is told it.

    Attributes:
        original: The size of the upright image in the file.
        crop: How much was cut off at the top and at the left, after the image was resized.
        target: The size of the sample's image.
    """

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]


@dataclass(frozen=True)
class Sample:
    """Holds a captioned image, decoded when it is first needed. Samples with the same `key` have the same image."""

    source: Pixels | Callable[[], Pixels] = field(repr=False)
    caption: str
    key: Key
    sizes: Sizes | None = None  # of images of one's own that were checked
    once: bool = False  # its image hardly comes again, so that its latents are not worth keeping
    index: int = -1  # its place in the stream, in a batch; its random numbers depend on it
    regularisation: "Sample | None" = None  # the regularisation image that is learned beside it, in a batch

    @cached_property
    def image(self) -> Pixels:
        """The pixels (H, W, 3), uint8 RGB; an `LdmrtError` where the file cannot be read."""
        return self.source() if callable(self.source) else self.source


def name_of(sample: Sample) -> str:
    """Name a sample by its key, and the regularisation image beside it, for a message."""
    beside = f" beside {name_of(sample.regularisation)}" if sample.regularisation else ""
    return " ".join(map(str, sample.key)) + beside


class Captioned(Protocol):
    """Streams captioned images, each place of which can be computed alone."""

    def draw(self, seed: int, index: int) -> Sample:
        """Return sample `index` of the stream that `seed` names."""

    def caption(self, seed: int, index: int) -> str:
        """Return the caption of `draw` without its image."""


@runtime_checkable
class Grouped(Captioned, Protocol):
    """Streams captioned images whose batches hold certain samples together."""

    def indices(self, seed: int, step: int, batch: int) -> Sequence[int]:
        """Return which samples of the stream a step takes: at most `batch`, and at least one."""

    def after(self, index: int) -> int:
        """Return the sample that takes the place of another one in its batch."""


def generator(*key: int) -> np.random.Generator:
    """Return a counter-based generator (Philox: Salmon et al. 2011) for one sample, keyed by one or two numbers."""
    return np.random.Generator(np.random.Philox(key=np.array([*key, 0][:2], np.uint64)))


def digest(rows: Sequence[object]) -> str:
    """Name what a data set holds by a hash, so that a resumed run can tell whether it has the same one."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ImageFolder:
    """Streams images of one's own: a folder with metadata or captions beside the images, or other sources.

    `folder` is the folder, or the path of the archives, and `files` finds the file of an image. `listed` is the name of
    the metadata, "" where there is none; `shapes` are the sizes of upright images, as far as they are known. Of several
    captions each sample draws one, and changes it by `wording`; its image it changes by `augmentation`.
    Images are laid on white, cropped to a centred square and resized to `size` pixels. In the place of a file in
    `skipped` comes the next of the stream.
    """

    folder: Path
    rows: tuple[Row, ...] = field(repr=False)
    size: int = SIZE
    skipped: frozenset[str] = field(default=frozenset(), repr=False)
    listed: str = METADATA
    shapes: Mapping[str, Shape] = field(default_factory=dict, repr=False)
    files: Files | None = field(default=None, repr=False)  # None: those of the folder
    augmentation: Augmentation = field(default_factory=Augmentation, repr=False)
    wording: Wording = field(default_factory=Wording, repr=False)

    @classmethod
    def open(cls, folder: Path, *, size: int = SIZE, prompt: str | None = None, column: str = CAPTION) -> "ImageFolder":
        """Read the captions of images, see `read_source`.

        Args:
            folder: The folder of the images, or the path of their archives.
            size: Pixels along a side of the samples' images.
            prompt: The caption of images that have none, in a folder without metadata.
            column: The column of the captions in the metadata.

        Returns:
            The stream; no image has been opened.

        Raises:
            LdmrtError: A line has no caption, or names no file inside the folder; an `InvalidLines` where several do.
        """
        source = read_source(folder, prompt, column)
        if source.problems:
            raise refuse(folder / source.listed, source.problems)
        return cls(folder, tuple(source.rows), size, listed=source.listed, files=source.files)

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

    def file(self, name: str) -> File:
        """Return the file of an image."""
        return self.files(name) if self.files else self.folder / name

    def fraction(self, name: str) -> float:
        """Return a number from 0 to 1 that the bytes of an image's file alone decide; 1 where it cannot be read."""
        try:
            content = content_of(self.file(name))
        except (OSError, LdmrtError):
            return 1.0
        return float(int.from_bytes(hashlib.sha256(content).digest()[:8], "big")) / 2.0**64

    def fingerprint(self, sample: Sample) -> str:
        """Return a hash of all that the pixels of a sample's image depend on: its file's bytes, its shape, its view.

        Raises:
            LdmrtError: The file cannot be read; an `OSError` where it is one of the disk.
        """
        name, *view = sample.key
        content = hashlib.sha256(content_of(self.file(str(name)))).digest()
        return hashlib.sha256(content + repr((self.shape_of(sample), view)).encode()).hexdigest()[:32]

    def shape_of(self, sample: Sample) -> Shape:
        """Return the width and height of a sample's image, which is not decoded."""
        return (sample.sizes.target[1], sample.sizes.target[0]) if sample.sizes else (self.size, self.size)

    def draw(self, seed: int, index: int) -> Sample:
        """Return sample `index` of the stream that `seed` names; its image is decoded later."""
        return self.shaped((self.size, self.size), seed, index)

    def shaped(self, shape: Shape, seed: int, index: int) -> Sample:
        """Return what `draw` returns with an image of another shape."""
        index, row = self._place(seed, index)
        return self.sample(row, shape, seed, index)

    def caption(self, seed: int, index: int) -> str:
        """Return the caption of `draw` without its image."""
        index, row = self._place(seed, index)
        return self.caption_of(row, seed, index)

    def caption_of(self, row: Row, seed: int, index: int) -> str:
        """Return the caption of a row that sample `index` draws."""
        text = row.texts[generator(seed, index).integers(len(row.texts)) if row.others else 0]
        return self.wording(text, seed, index)

    def sample(self, row: Row, shape: Shape, seed: int, index: int) -> Sample:
        """Return sample `index`, which is of this row, with an image of a shape."""
        view, original = self.augmentation.view(seed, index), self.shapes.get(row.file_name)
        sizes = sizes_of(original, shape, view) if original else None
        source = partial(fitted, self.file(row.file_name), shape, view)
        caption, key = self.caption_of(row, seed, index), (row.file_name, *view.key)
        return Sample(source, caption, key, sizes, once=view.place is not None)

    def _place(self, seed: int, index: int) -> tuple[int, Row]:
        """Return the first place of the stream from `index` on whose row is not skipped, and the row."""
        while (row := self.rows[entry(seed, index, len(self.rows))]).file_name in self.skipped:
            index += 1
        return index, row


def square(file: File, size: int) -> Pixels:
    """Crop an image file to its centred square and resize that: (size, size, 3), uint8 RGB."""
    return fitted(file, (size, size))


def fitted(file: File, shape: Shape, view: View = CENTRE) -> Pixels:
    """Crop an image file to a largest part of a shape, and resize that: (height, width, 3), uint8 RGB."""
    cropped = part(read_image(file, max(shape)), shape, view).resize(shape, Image.Resampling.LANCZOS)
    return np.asarray(cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.mirrored else cropped)


def part(image: Image.Image, shape: Shape, view: View) -> Image.Image:
    """Crop an image to a largest part that has the aspect ratio of a shape; it is not mirrored."""
    scale = max(shape[0] / image.width, shape[1] / image.height)
    width, height = (min(side, max(1, round(to / scale))) for side, to in zip(image.size, shape, strict=True))
    left, top = view.begin(0, image.width - width), view.begin(1, image.height - height)
    return image.crop((left, top, left + width, top + height))


def sizes_of(original: Shape, target: Shape, view: View = CENTRE) -> Sizes:
    """Return the sizes of an image that covers a shape, of which a part is taken; a mirrored one is mirrored first."""
    scale = max(to / side for side, to in zip(original, target, strict=True))
    spans = [max(0, round(side * scale) - to) for side, to in zip(original, target, strict=True)]
    left, top = view.begin(0, spans[0]), view.begin(1, spans[1])
    left = spans[0] - left if view.mirrored else left
    return Sizes((original[1], original[0]), (top, left), (target[1], target[0]))


def read_image(file: File, least: int) -> Image.Image:
    """Read an image, upright, on white and in 8-bit RGB; a JPEG may come smaller, with no side below twice `least`."""
    image: Image.Image = read_rgb("data", to_open(file), least=DRAFT * least, animated=False)
    return image


def upright_shape(file: File, decoded: Shape) -> Shape:
    """Return the width and height of an image, of which only the header is read.

    Args:
        file: The image.
        decoded: Its width and height as `read_image` decoded it, which are right but of a JPEG, which may have been
            decoded at a fraction of its size.
    """
    with Image.open(to_open(file)) as opened:
        if opened.format not in SCALED:
            return decoded
        width, height = opened.size
        return (height, width) if orientation_of(opened) in TURNED else (width, height)
