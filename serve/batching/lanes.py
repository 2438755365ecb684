"""Share a device among sizes: the size that has had the least of its time is next.

This is start-time fair queueing (Goyal, Vin & Cheng 1996): each size has a clock, which its calls move on by the
seconds that they took; the one that is furthest behind runs. A size that begins to wait starts from the clock of the
furthest behind, so it has no credit for the time when it asked for nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Lane:
    """Names what can share batches: images of one size by one model with the same LoRAs.

    Attributes:
        model: The model, or the stage of a cascade.
        size: Height and width of the images in pixels.
        most: How many rows a call of the U-Net has at most; a request of more has calls of its own.
        loras: The names and weights of the LoRAs that change the model.
    """

    model: str
    size: tuple[int, int]
    most: int
    loras: tuple[tuple[str, float], ...] = ()

    @property
    def pixels(self) -> int:
        """The pixels of an image."""
        return self.size[0] * self.size[1]


class Lanes:
    """Tells which of several lanes is next."""

    def __init__(self) -> None:
        """Begin without lanes."""
        self._spent: dict[Lane, float] = {}
        self._now = 0.0

    def open(self, lane: Lane) -> None:
        """Let a lane take part; it begins where the lane is that has had the least."""
        self._spent.setdefault(lane, self._now)

    def close(self, lane: Lane) -> None:
        """Forget a lane that asks for nothing any more."""
        self._spent.pop(lane, None)

    def charge(self, lane: Lane, seconds: float) -> None:
        """Note that a lane has had the device for so many seconds."""
        if lane in self._spent:
            self._spent[lane] += seconds
            self._now = min(self._spent.values())

    def in_order(self) -> Iterator[Lane]:
        """Yield the open lanes, the one that has had the least first; of equals the one that was opened first."""
        yield from sorted(self._spent, key=self._spent.__getitem__)
