"""The random numbers of training samples, each of which has its own.

A number depends on the run's seed, the sample's place in the stream and what it is for, and on nothing else. So batches
of 8, twice 4 accumulated, and two processes of 4 each draw the same ones, on every device.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .data.sample_random import sample_generator


class Draws:
    """Draws the numbers of B samples by Philox4x64 (Salmon et al. 2011) on the CPU, and sends them to a device.

    Attributes:
        noted: Numbers of samples that an error or a log names, such as timesteps: B of them, by what they are for.
    """

    def __init__(
        self, seed: int, samples: Sequence[int], device: str = "cpu", stream: str | Sequence[str] = ""
    ) -> None:
        """Take the samples at these places of the stream that `seed` names, or of others of these names."""
        self.seed, self.samples, self.device = seed, tuple(samples), device
        self.streams = (stream,) * len(self.samples) if isinstance(stream, str) else tuple(stream)
        self.noted: dict[str, Tensor] = {}

    def of(self, chosen: Tensor) -> "Draws":
        """Return the draws of the samples for which `chosen` (B,) is true."""
        return self._at([place for place, taken in enumerate(chosen.tolist()) if taken])

    def each(self) -> list["Draws"]:
        """Return the draws of each sample alone."""
        return [self._at([place]) for place in range(len(self.samples))]

    def beside(self, stream: str) -> "Draws":
        """Return the draws of 2B samples: these, and after them those at the same places of another stream."""
        streams = [*self.streams, *(own + stream for own in self.streams)]
        return Draws(self.seed, self.samples * 2, self.device, streams)

    def _at(self, places: Sequence[int]) -> "Draws":
        """Return the draws of some of the samples."""
        samples, streams = ([values[place] for place in places] for values in (self.samples, self.streams))
        return Draws(self.seed, samples, self.device, streams)  # type: ignore[arg-type]

    def normal(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """Draw numbers of mean 0 and variance 1, (B, *shape), float32."""
        return self.drawn(purpose, lambda random: random.standard_normal(shape, np.float32))

    def uniform(self, purpose: str) -> Tensor:
        """Draw a number from [0, 1) for each sample, (B,), float32."""
        return self.drawn(purpose, lambda random: random.random((), np.float32))

    def chance(self, purpose: str, share: float) -> Tensor:
        """Draw for each sample whether it is among this share of all, (B,), bool."""
        return self.uniform(purpose) < share

    def integers(self, purpose: str, below: int) -> Tensor:
        """Draw an integer from 0 to `below` - 1 for each sample, (B,), int64, and note it."""
        return self.note(purpose, self.drawn(purpose, lambda random: random.integers(below, size=())))

    def note(self, purpose: str, values: Tensor) -> Tensor:
        """Note values (B,) of the samples, for an error or a log, and return them on the device."""
        self.noted[purpose] = values.to(self.device)
        return self.noted[purpose]

    def drawn(self, purpose: str, draw: Callable[[np.random.Generator], NDArray[np.generic]]) -> Tensor:
        """Stack what each sample draws from a generator of its own, (B, ...)."""
        places = zip(self.samples, self.streams, strict=True)
        generators = (sample_generator(self.seed, sample, stream + purpose) for sample, stream in places)
        return torch.from_numpy(np.stack([draw(generator) for generator in generators])).to(self.device)
