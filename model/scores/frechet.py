"""Compute the Frechet distance of two sets of features, FID where they are Inception's (Heusel et al. 2017)."""

import numpy as np
from numpy.typing import ArrayLike

from .distances import Features, both_of


def frechet_distance(real: ArrayLike, generated: ArrayLike) -> float:
    """Return the squared Frechet distance of Gaussians with the means and covariances of two sets of features.

    |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)) (arXiv:1706.08500, equation 6), in float64.

    Args:
        real: Features of real images, (N, d).
        generated: Features of generated images, (M, d).

    Raises:
        LdmrtError: One has fewer than 2 rows, is not finite, or the widths differ.
    """
    a, b = both_of(real, generated)
    apart = a.mean(axis=0) - b.mean(axis=0)
    # C1 = A'A and C2 = B'B: the eigenvalues of C1 C2 are the squared singular values of A B', so no root of a
    # covariance of low rank is taken.
    left, right = _root(a), _root(b)
    cross = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    return float(apart @ apart + np.square(left).sum() + np.square(right).sum() - 2 * cross)


def _root(features: Features) -> Features:
    """Return A with A'A the unbiased covariance of features (N, d); it has at most d rows."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return centred if len(centred) <= centred.shape[1] else np.asarray(np.linalg.qr(centred, mode="r"), np.float64)
