"""Guidance as a matrix: the network runs on N rows of contexts, and m = W @ out weighs them per latent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .plan import Plan

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Guidance:
    """Which latent each of N network rows sees, and how their outputs combine.

    `weights` are those of every row for every latent, (batch, N). Where the rows are `k` blocks of a row a latent, in
    order, (batch, k) holds all that is not zero, and grows with the batch, not with its square.
    """

    idx: NDArray[np.int64]  # (N,)
    weights: Floats  # (batch, N), or (batch, k) where N = k * batch
    plain: bool = False  # the weights are the identity: there is nothing to combine
    rescale: float = 0.0

    def combine(self, out: Floats, into: Floats | None = None, channels: int | None = None) -> Floats:
        """Combine the network's outputs, (N, C, ...) -> (batch, C, ...), in `into` where it is given.

        `channels` are those of the mean where the network predicts a variance too: guidance is for the mean alone, and
        the variance is that of the last block's rows, the positive prompts'. `rescale` moves the deviation of each mean
        back to that of its positive prompt by this share: strong guidance overexposes (Lin et al. 2023,
        arXiv:2305.08891, equations 15 and 16).
        """
        if self.plain:
            return out
        mean = out[:, :channels]
        guided = np.empty((len(self.weights), *mean.shape[1:]), np.float32) if into is None else into
        self._weighted(mean.reshape(len(out), -1), guided.reshape(len(guided), -1))
        if self.rescale:
            axes = tuple(range(1, out.ndim))
            positive = mean[-len(guided) :].std(axes, ddof=1, keepdims=True)
            excess = positive / guided.std(axes, ddof=1, keepdims=True)
            guided *= 1 + self.rescale * (excess - 1)
        if mean.shape[1] == out.shape[1]:
            return guided
        return np.concatenate([guided, out[-len(guided) :, channels:]], axis=1)

    def _weighted(self, rows: Floats, guided: Floats) -> None:
        """Weigh rows (N, numbers) into `guided`, (batch, numbers). Blocks are weighed latent by latent, so that the
        numbers of one do not depend on how many stand beside it.
        """
        batch, each = self.weights.shape
        if each == len(rows):
            np.dot(self.weights, rows, out=guided)
        else:
            blocks = rows.reshape(each, batch, -1).swapaxes(0, 1)
            np.matmul(self.weights[:, None], blocks, out=guided[:, None])

    @property
    def matrix(self) -> Floats:
        """The weights of every row for every latent, (batch, N): what the folded step takes."""
        batch, each = self.weights.shape
        if each == len(self.idx):
            return self.weights
        dense = np.zeros((batch, each, batch), np.float32)
        latent = np.arange(batch)
        dense[latent, :, latent] = self.weights
        return dense.reshape(batch, -1)


def classifier_free(batch: int, scale: float, rescale: float = 0.0) -> Guidance:
    """Ho & Salimans 2022, arXiv:2207.12598: (1 - g) * negative + g * positive.

    The first `batch` rows have the negative prompts; at scale 1 there are only positive ones.
    """
    scale, latent = float(scale), np.arange(batch)
    if scale == 1.0:
        return Guidance(latent, np.ones((batch, 1), np.float32), plain=True)
    weights = np.tile(np.array([1 - scale, scale], np.float32), (batch, 1))
    return Guidance(np.concatenate([latent, latent]), weights, rescale=rescale)


def guided_rows(plan: Plan, interval: tuple[float, float]) -> NDArray[np.bool_]:
    """Which rows of a plan have a noise level sigma / alpha inside the interval, (rows,): guidance harms at high levels
    and does nothing at low ones (Kynkäänniemi et al. 2024, arXiv:2404.07724, equation 6).
    """
    low, high = interval
    level = np.divide(plan.sigma, plan.alpha, out=np.full(plan.rows, np.inf), where=plan.alpha > 0)
    return (low < level) & (level <= high)


def positive_half(words: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the conditioning of the positive prompts alone."""
    return {name: array[len(array) // 2 :] for name, array in words.items()}
