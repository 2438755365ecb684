"""Choose how the image of a sample is shown: mirrored or not, and which part of it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .sample_random import sample_generator

SIDED = re.compile(r"\b(left|right)\b", re.IGNORECASE)


@dataclass(frozen=True)
class View:
    """States how an image is shown.

    Attributes:
        mirrored: Whether left and right are exchanged.
        place: Where the crop begins, as shares from 0 to 1 of what is cut off of the width and of the height; None for
            the centre.
    """

    mirrored: bool = False
    place: tuple[float, float] | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """What the key of a sample says of it; nothing of an image that is only cropped to its centre."""
        return (("mirrored",) if self.mirrored else ()) + (() if self.place is None else ("crop", *self.place))

    @classmethod
    def of(cls, key: Sequence[object]) -> "View":
        """Return the view that a sample's key states, see `key`."""
        mirrored, place = "mirrored" in key[:1], tuple(key[-2:]) if "crop" in key else None
        return cls(mirrored, place)  # type: ignore[arg-type]

    def begin(self, axis: int, span: int) -> int:
        """Return where a crop begins, of 0 to `span` pixels, along the width (0) or the height (1)."""
        return span // 2 if self.place is None else min(span, int(self.place[axis] * (span + 1)))


CENTRE = View()


@dataclass(frozen=True)
class Augmentation:
    """States what is drawn by chance of each sample's image: `flip`, mirrored or not; `crop`, which part of it."""

    flip: bool = False
    crop: bool = False

    def view(self, seed: int, index: int) -> View:
        """Return how sample `index` of the stream that `seed` names is shown."""
        mirrored = self.flip and sample_generator(seed, index, "mirror").random() < 0.5
        if not self.crop:
            return View(mirrored)
        across, down = sample_generator(seed, index, "crop").random(2).tolist()
        return View(mirrored, (across, down))


def says_a_side(caption: str) -> bool:
    """Tell whether a caption has the word left or right, which is wrong of a mirrored image."""
    return SIDED.search(caption) is not None
