"""Compute the kernel distance of two sets of features, KID where they are Inception's (Binkowski et al. 2018)."""

from numpy.typing import ArrayLike

from .distances import ROWS, Features, both_of

DEGREE = 3


def kernel_distance(real: ArrayLike, generated: ArrayLike) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy of two sets of features.

    The kernel is (x y / d + 1)^3 (arXiv:1801.01401, section 4). The estimate may be below 0.

    Args:
        real: Features of real images, (N, d).
        generated: Features of generated images, (M, d).

    Raises:
        LdmrtError: One has fewer than 2 rows, is not finite, or the widths differ.
    """
    a, b = both_of(real, generated)
    return _within(a) + _within(b) - 2 * _total(a, b) / (len(a) * len(b))


def _within(a: Features) -> float:
    """Return the mean of the kernel over pairs of different rows."""
    own = (((a * a).sum(axis=1) / a.shape[1] + 1) ** DEGREE).sum()
    return float((_total(a, a) - own) / (len(a) * (len(a) - 1)))


def _total(a: Features, b: Features) -> float:
    """Return the sum of the kernel over all pairs."""
    blocks = (a[first : first + ROWS] for first in range(0, len(a), ROWS))
    return float(sum(((block @ b.T / a.shape[1] + 1) ** DEGREE).sum() for block in blocks))
