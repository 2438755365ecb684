"""Compute the features of timesteps of diffusers' transformers (Vaswani et al. 2017, arXiv:1706.03762, section 3.5)."""

import math

import torch
from torch import Tensor, nn


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
