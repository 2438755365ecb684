"""Features of a noise level at random frequencies (Tancik et al. 2020, arXiv:2006.10739; Song et al. 2021)."""

import math

import torch
from torch import Tensor, nn

SCALE = 16.0  # deviation of the frequencies


class GaussianFourier(nn.Module):
    """Computes sines and cosines of a level's logarithm, at frequencies that were drawn once and never trained."""

    def __init__(self, channels: int) -> None:
        """Draw as many frequencies as there are `channels`."""
        super().__init__()
        self.weight = nn.Parameter(SCALE * torch.randn(channels), requires_grad=False)

    def forward(self, level: Tensor) -> Tensor:
        """Return the features of noise levels (B,), above 0: (B, 2 * channels), the sines first.

        The angles reach thousands and need float32, whatever the network's precision: they have it, or float64.
        """
        level = level.to(torch.promote_types(level.dtype, torch.float32))
        angles = level.log()[:, None] * self.weight.to(level.dtype) * 2 * math.pi
        return torch.cat([angles.sin(), angles.cos()], dim=-1)
