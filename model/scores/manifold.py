"""Compute precision and recall of generated images by manifolds of nearest neighbours (Kynkaanniemi et al. 2019)."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .distances import Features, both_of, squared_distances

NEIGHBOURS = 3  # as guided-diffusion's evaluator has it


def precision_and_recall(real: ArrayLike, generated: ArrayLike, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Return the share of generated images on the manifold of the real ones, and the other way round.

    A manifold is the union of balls around its images, each as large as the distance to the k-th nearest of them
    (arXiv:1904.06991, equations 1 and 2).

    Args:
        real: Features of real images, (N, d).
        generated: Features of generated images, (M, d).
        neighbours: k.

    Raises:
        LdmrtError: One has no k + 1 rows, is not finite, or the widths differ.
    """
    a, b = both_of(real, generated, least=neighbours + 1)
    of_real, of_generated = radii(a, neighbours), radii(b, neighbours)
    covered, inside = np.zeros(len(a), bool), np.zeros(len(b), bool)
    for rows, block in squared_distances(a, b):
        inside |= (block <= of_real[rows, None]).any(axis=0)
        covered[rows] = (block <= of_generated).any(axis=1)
    return float(inside.mean()), float(covered.mean())


def radii(features: Features, neighbours: int) -> NDArray[np.float64]:
    """Return the squared distances (N,) from each row of features (N, d) to its k-th nearest other row."""
    found = np.empty(len(features))
    for rows, block in squared_distances(features, features):
        block[np.arange(len(block)), np.arange(rows.start, rows.stop)] = -1.0  # itself, before any copy of it
        found[rows] = np.partition(block, neighbours, axis=1)[:, neighbours]
    return found
