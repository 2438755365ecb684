"""Draw the noise of training samples: with an offset of each channel, or of many resolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmrt.model.training.draws import Draws

SCALES = 10  # resolutions, at most


def offset_noise(draws: Draws, channels: int, scale: float) -> Tensor:
    """Draw a constant of this standard deviation for each channel, (B, C, 1, 1) (Guttenberg 2023, offset noise)."""
    return scale * draws.normal("offset noise", (channels, 1, 1))


def pyramid_noise(noise: Tensor, draws: Draws, discount: float) -> Tensor:
    """Add noise of lower and lower resolutions to noise (Whitaker 2023, multi-resolution noise).

    Resolution i is that of the one before divided by r^i, where r is drawn from 2 to 4; its amplitude is discount^i.
    The last one has a side of one number. Every sample draws resolutions of its own.

    Args:
        noise: Of B samples, (B, C, H, W), variance 1.
        draws: The samples' random numbers.
        discount: From 0 to 1.

    Returns:
        (B, C, H, W); the numbers of each sample have variance 1.
    """
    return torch.stack([_pyramid(noise[i], alone, discount) for i, alone in enumerate(draws.each())])


def _pyramid(noise: Tensor, draws: Draws, discount: float) -> Tensor:
    """Add the lower resolutions to one sample's noise (C, H, W)."""
    size = height, width = noise.shape[1], noise.shape[2]
    for i in range(SCALES):
        ratio = (2 + 2 * draws.uniform(f"pyramid ratio {i}").item()) ** i
        height, width = max(1, int(height / ratio)), max(1, int(width / ratio))
        coarse = draws.normal(f"pyramid noise {i}", (len(noise), height, width))
        noise = noise + discount**i * F.interpolate(coarse, size=size, mode="bilinear")[0]
        if 1 in (height, width):
            break
    return noise / noise.std()
