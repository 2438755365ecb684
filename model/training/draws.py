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

    def __init__(self, seed: int, samples: Sequence[int], device: str = "cpu", stream: str = "") -> None:
        """Take the samples at these places of the stream that `seed` names, or of another one of that name."""
        self.seed, self.samples, self.device, self.stream = seed, tuple(samples), device, stream
        self.noted: dict[str, Tensor] = {}

    def of(self, chosen: Tensor) -> "Draws":
        """Return the draws of the samples for which `chosen` (B,) is true."""
        pairs = zip(self.samples, chosen.tolist(), strict=True)
        return Draws(self.seed, [sample for sample, taken in pairs if taken], self.device, self.stream)

    def each(self) -> list["Draws"]:
        """Return the draws of each sample alone."""
        return [Draws(self.seed, [sample], self.device, self.stream) for sample in self.samples]

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
        generators = (sample_generator(self.seed, sample, self.stream + purpose) for sample in self.samples)
        return torch.from_numpy(np.stack([draw(generator) for generator in generators])).to(self.device)
