"""Train on images of several shapes: each goes to the shape nearest to its own, and a batch is of one shape.

Every batch of every epoch is computed alone, so a resumed run reads the same stream; an epoch has each image once.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from ldmrt.runtime.errors import LdmrtError

from .captioned import ImageFolder, Sample, Shape, digest
from .order import GOLDEN, WORD, entry

LONGER = 2  # how many times the size the longer side may be, and the size the shorter


def bucket_shapes(size: int, unit: int) -> tuple[Shape, ...]:
    """Return the shapes of images whose area is about that of a square, from the tallest to the widest.

    Sides are multiples of `unit` from half of `size` to twice, the area is at most size^2, and no shape fits into
    another one.

    Args:
        size: Pixels along a side of the square.
        unit: The autoencoder's factor times 2^(levels of the U-Net - 1), which sides have to be multiples of.

    Raises:
        LdmrtError: `size` is no multiple of `unit`.
    """
    if size % unit:
        expected = f"a multiple of {unit} with --buckets"
        raise LdmrtError("train", "unsupported --size", expected=expected, found=size)
    most = LONGER * size // unit
    least = -(-size // (LONGER * unit))
    area = (size // unit) ** 2
    shapes = [(w, min(most, area // w)) for w in range(least, most + 1) if area // w >= least]
    return tuple((w * unit, h * unit) for w, h in shapes if not any(w < other and h <= tall for other, tall in shapes))


def nearest(shapes: Sequence[Shape], shape: Shape) -> Shape:
    """Return the shape of the nearest logarithm of the aspect ratio; of two that are as near, the first."""
    width, height = shape
    return min(shapes, key=lambda one: abs(math.log(one[0] * height / (one[1] * width))))


@dataclass(frozen=True)
class BucketedImages:
    """Streams a folder's images in their nearest shapes; `groups` are the images of each shape, by their rows."""

    images: ImageFolder
    groups: tuple[tuple[Shape, tuple[int, ...]], ...] = field(repr=False)

    @classmethod
    def of(cls, images: ImageFolder, shapes: Sequence[Shape]) -> "BucketedImages":
        """Sort images, whose sizes are known, into the shapes nearest to theirs; those that are skipped into none."""
        found: dict[Shape, list[int]] = {shape: [] for shape in shapes}
        for number, row in enumerate(images.rows):
            if row.file_name not in images.skipped:
                found[nearest(shapes, images.shapes[row.file_name])].append(number)
        return cls(images, tuple((shape, tuple(rows)) for shape, rows in found.items() if rows))

    def __len__(self) -> int:
        """Count the captioned images of an epoch."""
        return self._ends[-1]

    @property
    def digest(self) -> str:
        """A hash of names, captions and shapes."""
        return digest([self.images.digest, self.groups])

    def draw(self, seed: int, index: int) -> Sample:
        """Return sample `index` of the stream that `seed` names; those of one shape follow each other."""
        epoch, place = divmod(index, len(self))
        group = bisect_right(self._ends, place)
        shape, rows = self.groups[group]
        within = epoch * len(rows) + place - self._first(group)
        row = self.images.rows[rows[entry(seed + GOLDEN * (group + 1) & WORD, within, len(rows))]]
        return self.images.sample(row, shape, seed, index)

    def fingerprint(self, sample: Sample) -> str:
        """Return a hash of all that the pixels of a sample's image depend on, see `ImageFolder.fingerprint`."""
        return self.images.fingerprint(sample)

    def caption(self, seed: int, index: int) -> str:
        """Return the caption of `draw` without its image."""
        return self.draw(seed, index).caption

    def indices(self, seed: int, step: int, batch: int) -> range:
        """Return which samples of the stream a step takes: `batch` of one shape, or the rest of them in this epoch.

        The batches of an epoch are in an order of their own.
        """
        counts = [len(rows) for _, rows in self.groups]
        ends = list(accumulate(-(-count // batch) for count in counts))
        place = entry(seed, step, ends[-1])
        group = bisect_right(ends, place)
        before = batch * (place - (ends[group - 1] if group else 0))
        first = step // ends[-1] * len(self) + self._first(group) + before
        return range(first, first + min(batch, counts[group] - before))

    def after(self, index: int) -> int:
        """Return the sample that takes the place of another one: the next of the same shape in its epoch."""
        epoch, place = divmod(index, len(self))
        first = self._first(group := bisect_right(self._ends, place))
        return epoch * len(self) + first + (place + 1 - first) % len(self.groups[group][1])

    def largest(self, batch: int) -> range:
        """Return samples of the stream that make up a batch of the most pixels, of at most `batch`."""
        counts = [min(batch, len(rows)) for _, rows in self.groups]
        pixels = [width * height * count for ((width, height), _), count in zip(self.groups, counts, strict=True)]
        group = pixels.index(max(pixels))
        return range(self._first(group), self._first(group) + counts[group])

    @cached_property
    def _ends(self) -> list[int]:
        """Where in an epoch the samples of each shape end."""
        return list(accumulate(len(rows) for _, rows in self.groups))

    def _first(self, group: int) -> int:
        """Return where in an epoch the samples of a shape begin."""
        return self._ends[group - 1] if group else 0
