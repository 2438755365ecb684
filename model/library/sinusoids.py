"""Compute the features of timesteps and of positions of diffusers' transformers (Vaswani et al. 2017, section 3.5)."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

LEADING_BITS = 12  # leading bits of a frequency, whose product with a position of up to 12 bits float32 holds exactly


class Sinusoids(nn.Module):
    """Computes the features of timesteps as diffusers' Timesteps does, from frequencies that are constants.

    Exporters compute constants by another exp, whose last bit makes a difference of 5e-5 where angles reach 1000.
    """

    def __init__(self, channels: int) -> None:
        """Compute the frequencies of so many features, by PyTorch on the CPU."""
        super().__init__()
        half = channels // 2
        exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device="cpu") / half
        self.frequencies: list[float] = torch.exp(exponents).tolist()

    def forward(self, timesteps: Tensor) -> Tensor:
        """Return cosines, then sines, (B, channels) in float32, of timesteps (B,)."""
        frequencies = torch.tensor(self.frequencies, dtype=torch.float32, device=timesteps.device)
        angles = timesteps[:, None].float() * frequencies[None, :]
        return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


class ExactAngles:
    """Computes cosines and sines of positions times frequencies as float64 does, with float32 alone.

    TensorRT has no float64. A frequency is the sum of its leading bits, whose product with a position of few bits is
    exact, and of the rest, whose product is small; cosine and sine of the sum follow from those of both.
    """

    def __init__(self, frequencies: NDArray[np.float64]) -> None:
        """Divide frequencies of any number."""
        mantissas, exponents = np.frexp(frequencies)
        leading = np.ldexp(np.trunc(np.ldexp(mantissas, LEADING_BITS)), exponents - LEADING_BITS)
        self.leading: list[float] = leading.tolist()
        self.rest: list[float] = (frequencies - leading).tolist()

    def __call__(self, position: Tensor, beyond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, (tokens, frequencies) in float32.

        Args:
            position: (tokens, 1) in float32, of at most 12 bits.
            beyond: (tokens, 1) in float32, a small number that is to be added to it.
        """
        leading, rest = (
            torch.tensor(part, dtype=torch.float32, device=position.device)[None] for part in (self.leading, self.rest)
        )
        large, small = position * leading, position * rest
        if beyond is not None:
            small = small + beyond * (leading + rest)
        cosines = torch.cos(large) * torch.cos(small) - torch.sin(large) * torch.sin(small)
        return cosines, torch.sin(large) * torch.cos(small) + torch.cos(large) * torch.sin(small)
