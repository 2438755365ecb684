"""Draw the noise of a request's images: by streams that need no order, or in the order of another program."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .counter import noise
from .philox import A1111, TorchCuda
from .torch_cpu import TorchCpu

LDMRT, WEB_UI = "ldmrt", "a1111"
Drawn = NDArray[np.float32]
Shape = tuple[int, ...]


class RandomStream(Protocol):
    """One image's stream of random numbers, which goes on from call to call."""

    def randn(self, shape: Shape) -> Drawn:
        """Draw unit noise of a shape, float32."""
        ...


STREAMS: Mapping[str, Callable[[int], RandomStream]] = {
    "torch-cpu": TorchCpu,
    "torch-cuda": TorchCuda,
    WEB_UI: A1111,
}
NAMES = (LDMRT, *STREAMS)


class NoiseSource(Protocol):
    """Draws unit noise for every image of a request."""

    def __call__(self, stream: int, shape: Shape, into: Drawn | None = None) -> Drawn:
        """Draw the noise of a stream, (images, *shape), float32.

        Args:
            stream: As of `counter.noise`: `FIRST`, `IMAGE`, `MASKED`, `NOISED`, or a row + 1, of a stage.
            shape: Shape of the noise of one image.
            into: Where to write it; a new array where it is None.
        """
        ...


@dataclass(frozen=True)
class CountedNoise:
    """Draws ldmrt's own noise, whose streams need no order.

    Attributes:
        seeds: The seed of each image.
    """

    seeds: Sequence[int]

    def __call__(self, stream: int, shape: Shape, into: Drawn | None = None) -> Drawn:
        """Draw the noise of a stream, (images, *shape), float32."""
        return noise(self.seeds, stream, shape, into)


@dataclass
class OrderedNoise:
    """Draws by one random stream for each image, in another program's order.

    What comes before the sampler's rows is drawn at once, in that order, whatever is asked for first. The rows follow
    in theirs; a row that is asked for again is drawn again from the seeds.

    Attributes:
        name: One of `STREAMS`.
        seeds: The seed of each image.
        before: Stream and shape of each draw before the rows; those that nothing asks for only move the streams on.
    """

    name: str
    seeds: Sequence[int]
    before: Sequence[tuple[int, Shape]]
    _streams: list[RandomStream] = field(init=False, repr=False)
    _drawn: dict[int, Drawn] = field(init=False, repr=False)
    _rows: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Draw what comes before the rows."""
        self._begin()

    def __call__(self, stream: int, shape: Shape, into: Drawn | None = None) -> Drawn:
        """Draw the noise of a stream, (images, *shape), float32."""
        drawn = self._drawn[stream] if stream in self._drawn else self._row(stream, shape)
        if into is None:
            return drawn
        into[...] = drawn
        return into

    def _begin(self) -> None:
        self._streams = [STREAMS[self.name](seed) for seed in self.seeds]
        self._drawn = {stream: self._next(shape) for stream, shape in self.before}
        self._rows = []

    def _row(self, stream: int, shape: Shape) -> Drawn:
        """Draw the noise of a row that comes after all that were drawn, or begin again."""
        if self._rows and stream <= self._rows[-1]:
            earlier = [row for row in self._rows if row < stream]
            self._begin()
            for row in earlier:
                self._row(row, shape)
        self._rows.append(stream)
        return self._next(shape)

    def _next(self, shape: Shape) -> Drawn:
        return np.stack([stream.randn(shape) for stream in self._streams])
