"""Find generated images that are copies of training images, by the two nearest of these (Carlini et al. 2023)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .distances import features_of, squared_distances

COPY = 0.5  # ratio below which an image is counted as a copy


@dataclass(frozen=True)
class Neighbours:
    """Holds the nearest training image of each of M generated images.

    Attributes:
        index: Which training image it is, (M,).
        distance: The Euclidean distance to it, (M,).
        ratio: That distance over the distance to the second nearest, (M,): 0 is a copy, and near 1 nothing is copied.
    """

    index: NDArray[np.int64]
    distance: NDArray[np.float64]
    ratio: NDArray[np.float64]

    @property
    def worst(self) -> NDArray[np.int64]:
        """The generated images, the likeliest copies first, (M,)."""
        return np.argsort(self.ratio, kind="stable")

    @property
    def copied(self) -> float:
        """The share of images whose ratio is below `COPY`."""
        return float((self.ratio < COPY).mean())


def nearest_neighbours(training: ArrayLike, generated: ArrayLike) -> Neighbours:
    """Find the nearest training image of each generated one, and how much nearer it is than the second nearest.

    Equal training images count as one, so the second nearest is another image. The distance to the nearest relative to
    the distances to others is what arXiv:2301.13188, section 4.2, detects copies by.

    Args:
        training: Pixels or features of the training images, (N, ...).
        generated: The same of generated images, (M, ...).

    Raises:
        LdmrtError: There are fewer than 2 different training images, no generated ones, or the sizes differ.
    """
    a, b = features_of(training), features_of(generated, least=1)
    different, places = np.unique(a, axis=0, return_index=True)
    features_of(different)  # refuses one image alone
    index, nearest = np.empty(len(b), np.int64), np.empty((len(b), 2))
    for rows, block in squared_distances(b, different):
        two = np.argpartition(block, 1, axis=1)[:, :2]
        # Those two again, without the cancellation of large norms: a copy is exactly 0 apart.
        exact = np.sqrt(np.square(b[rows][:, None] - different[two]).sum(axis=2))
        order = np.argsort(exact, axis=1, kind="stable")
        nearest[rows] = np.take_along_axis(exact, order, axis=1)
        index[rows] = places[np.take_along_axis(two, order, axis=1)[:, 0]]
    return Neighbours(index, nearest[:, 0], nearest[:, 0] / nearest[:, 1])
