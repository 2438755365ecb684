"""Measure how unlikely images are under their reconstructions, and how far latents are from the prior.

Everything can be a mean over elements, or a sum over an image as in the code of Rombach et al. 2022. With sums, squared
errors and a log-variance s = log 2v the loss is the negative evidence lower bound of a Gaussian decoder of variance v.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ldmrt.model.training.diffusion.error import squared_error


def absolute_error(found: Tensor, expected: Tensor) -> Tensor:
    """Return the mean absolute error of each of B samples, (B,), as `squared_error` returns the mean squared one."""
    kind = torch.promote_types(expected.dtype, torch.float32)
    return (found.to(kind) - expected).abs().flatten(1).mean(dim=1, dtype=torch.float64).to(kind)


ERRORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": absolute_error, "l2": squared_error}


def scaled(error: Tensor, log_variance: Tensor | float) -> Tensor:
    """Return error / exp(s) for errors (B,) and a log-variance s."""
    return error / math.exp(log_variance) if isinstance(log_variance, float) else error / log_variance.exp()


def nll(
    found: Tensor, expected: Tensor, *, measure: str = "l2", log_variance: Tensor | float = 0.0, summed: bool = False
) -> Tensor:
    """Return error / exp(s) + s for each of B samples, (B,), as a mean over its elements or a sum.

    Args:
        found: The reconstructions, (B, ...).
        expected: The images, as large.
        measure: A key of `ERRORS`.
        log_variance: The log-variance s, one number.
        summed: Whether it is a sum.
    """
    each = scaled(ERRORS[measure](found, expected), log_variance) + log_variance
    return each * expected[0].numel() if summed else each


def bernoulli_kl(first: Tensor, second: Tensor) -> Tensor:
    """Return KL(Bernoulli(first) || Bernoulli(second)) of each element, in nats, for probabilities inside (0, 1)."""
    return first * (first / second).log() + (1 - first) * ((1 - first) / (1 - second)).log()
