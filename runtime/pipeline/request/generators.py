"""Take seeds from random generators, as diffusers' pipelines take noise from them."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .checks import SEEDS, invalid


class SeededGenerator(Protocol):
    """A generator that names the seed it began with: torch's."""

    def initial_seed(self) -> int:
        """Return the seed."""
        ...


Generator = np.random.Generator | np.random.RandomState | SeededGenerator


def seeds_from(generator: Generator | Sequence[Generator], images: int) -> list[int]:
    """Return one seed for each image.

    NumPy's generators draw the seeds, so a second request with the same generator is of other images. torch's give the
    seed that they began with, counted up from image to image; they are not advanced, since torch is not imported here.

    Args:
        generator: One generator for all images, or a sequence of one for each.
        images: How many images the request asks for.

    Raises:
        InvalidRequest: A sequence has another length, or holds something else than generators.
    """
    if isinstance(generator, Sequence):
        if len(generator) != images:
            raise invalid("generator", f"one, or one per image ({images})", f"{len(generator)} generators")
        return [_draw(each, 1)[0] for each in generator]
    return _draw(generator, images)


def _draw(generator: Generator, count: int) -> list[int]:
    if isinstance(generator, np.random.Generator):
        return [int(seed) for seed in generator.integers(SEEDS, size=count, dtype=np.uint64)]
    if isinstance(generator, np.random.RandomState):
        return [int(seed) for seed in generator.randint(SEEDS, size=count, dtype=np.uint64)]
    if callable(initial_seed := getattr(generator, "initial_seed", None)):
        return [(int(initial_seed()) + i) % SEEDS for i in range(count)]
    raise invalid("generator", "numpy.random.Generator, torch.Generator, or a list of one per image", generator)
