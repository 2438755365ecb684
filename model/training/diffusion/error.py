"""Measure how far predictions are from their targets, one number for each sample."""

import torch
from torch import Tensor


def squared_error(found: Tensor, expected: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean squared error of each of B samples, (B,), in float32 or the target's float64.

    Args:
        found: The predictions.
        expected: Their targets, as large.
        mask: Weights of the elements, that fit to them; see `_mean`.
    """
    kind = _kind(expected)
    return _mean((found.to(kind) - expected).square(), mask)


def huber_error(found: Tensor, expected: Tensor, c: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean pseudo-Huber loss of each of B samples, (B,) (Khrapov et al. 2024, arXiv:2403.16728).

    2 c (sqrt(d^2 + c^2) - c) is the squared error of small differences d, and 2 c |d| of large ones.

    Args:
        found: The predictions.
        expected: Their targets, as large.
        c: Where the one passes into the other, (B,).
        mask: Weights of the elements, that fit to them; see `_mean`.
    """
    kind = _kind(expected)
    c = c.to(kind).reshape(-1, *[1] * (expected.ndim - 1))
    square = (found.to(kind) - expected).square()
    # sqrt(d^2 + c^2) - c, without the difference of two numbers that are nearly the same
    return _mean(2 * c * square / ((square + c.square()).sqrt() + c), mask)


def smooth_l1_error(found: Tensor, expected: Tensor, c: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean of 2 (sqrt(d^2 + c^2) - c) over each of B samples, (B,): `huber_error` divided by c."""
    return huber_error(found, expected, c, mask) / c.to(_kind(expected))


def _mean(errors: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of each of B samples, (B,), over all elements, after they are multiplied with the mask.

    kohya's sd-scripts weight so (`apply_masked_loss`): an image with a small mask has a small loss. The mean is taken
    in float64: in float32 its last bit depends on how many samples are computed at once.
    """
    weighted = errors if mask is None else errors * mask.to(errors.dtype)
    return weighted.flatten(1).mean(dim=1, dtype=torch.float64).to(errors.dtype)


ERRORS = {"huber": huber_error, "smooth_l1": smooth_l1_error}  # beside the squared one, with c


def scheduled_c(c: float, t: Tensor, timesteps: int) -> Tensor:
    """Return c of timesteps (B,): it falls exponentially from 1 to `c` (Khrapov et al. 2024, section 4)."""
    return torch.as_tensor(c, dtype=torch.float64, device=t.device) ** (t.double() / timesteps)


def _kind(expected: Tensor) -> torch.dtype:
    """Return float32, or the target's float64: a network in half precision is measured in the target's type."""
    return torch.promote_types(expected.dtype, torch.float32)
