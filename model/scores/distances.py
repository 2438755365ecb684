"""Compute squared distances between two sets of features, a block of rows at a time."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ldmrt.runtime.errors import LdmrtError

ROWS = 1024  # of a block
Features = NDArray[np.float64]  # (N, d)


def features_of(values: ArrayLike, least: int = 2) -> Features:
    """Return features as float64, one row an image.

    Args:
        values: (N, ...), flattened to (N, d).
        least: How many rows a score needs.

    Raises:
        LdmrtError: There are fewer rows, or some number is not finite.
    """
    array = np.asarray(values, np.float64)
    found = array.reshape(len(array), -1)
    if len(found) < least:
        raise LdmrtError("scores", "too few images for this score", expected=f"at least {least}", found=len(found))
    if not np.isfinite(found).all():
        raise LdmrtError("scores", "features are not finite", found=f"{(~np.isfinite(found)).sum()} numbers")
    return found


def both_of(first: ArrayLike, second: ArrayLike, least: int = 2) -> tuple[Features, Features]:
    """Return two sets of features of one width as `features_of` does.

    Raises:
        LdmrtError: One has fewer than `least` rows, is not finite, or the widths differ.
    """
    a, b = features_of(first, least), features_of(second, least)
    same_width(a, b)
    return a, b


def same_width(a: Features, b: Features) -> None:
    """Raise an `LdmrtError` if two sets of features have different numbers of columns."""
    if a.shape[1] != b.shape[1]:
        raise LdmrtError("scores", "features of different widths", expected=a.shape[1], found=b.shape[1])


def squared_distances(a: Features, b: Features, rows: int = ROWS) -> Iterator[tuple[slice, Features]]:
    """Yield the squared Euclidean distances from rows of `a` to all of `b`.

    Args:
        a: (N, d).
        b: (M, d).
        rows: Rows of `a` in a block.

    Yields:
        The rows, and their distances, (rows, M), none below 0.

    Raises:
        LdmrtError: The widths differ.
    """
    same_width(a, b)
    norms = np.square(b).sum(axis=1)
    for first in range(0, len(a), rows):
        part = slice(first, min(first + rows, len(a)))
        block = np.square(a[part]).sum(axis=1)[:, None] + norms - 2 * (a[part] @ b.T)
        yield part, np.maximum(block, 0.0)
