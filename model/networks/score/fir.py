"""Halve and double images by a filter of four taps, so that nothing aliases (Zhang 2019, arXiv:1904.11486).

The taps are 1, 3, 3, 1 along either side, and outside an image there are zeros.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = (1 / 8, 3 / 8, 3 / 8, 1 / 8)


def fir_halve(x: Tensor, _: torch.Size | None = None) -> Tensor:
    """Filter features (B, C, H, W) and take every second value; returns (B, C, H/2, W/2), rounded down."""
    channels, taps = x.shape[1], torch.tensor(TAPS, dtype=x.dtype, device=x.device)
    kernel = torch.outer(taps, taps).expand(channels, 1, 4, 4)
    return F.conv2d(x, kernel, stride=2, padding=1, groups=channels)


def fir_double(x: Tensor, size: torch.Size | None = None) -> Tensor:
    """Put zeros between the values of features (B, C, H, W) and filter them; returns (B, C, 2H, 2W), or of a `size`.

    The size, (height, width), is one more than the double where a side was odd before it was halved. With these taps it
    is bilinear interpolation, in which the zeros outside take part.
    """
    height, width = (2 * x.shape[2], 2 * x.shape[3]) if size is None else size
    padded = F.pad(x, (1, 2, 1, 2))
    larger = F.interpolate(padded, scale_factor=2.0, mode="bilinear", align_corners=False)
    return larger[:, :, 2 : 2 + height, 2 : 2 + width]
