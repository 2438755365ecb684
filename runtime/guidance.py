"""Guidance as a matrix: the network runs on N rows of contexts, and m = W @ out weighs them per latent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sampler import Plan


@dataclass(frozen=True)
class Guidance:
    """Which latent each of N network rows sees, and how their outputs combine."""

    idx: NDArray[np.int64]  # (N,)
    weights: NDArray[np.float32]  # (batch, N)
    plain: bool = False  # the weights are the identity: there is nothing to combine
    rescale: float = 0.0

    def combine(self, out: NDArray[np.float32], into: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """(N, ...) -> (batch, ...), in `into` where it is given.

        `rescale` moves the deviation of each back to that of its last row, the positive prompt's, by this share: strong
        guidance overexposes (Lin et al. 2023, arXiv:2305.08891, equations 15 and 16).
        """
        if self.plain:
            return out
        guided = np.empty((len(self.weights), *out.shape[1:]), np.float32) if into is None else into
        np.dot(self.weights, out.reshape(len(out), -1), out=guided.reshape(len(guided), -1))
        if self.rescale:
            axes = tuple(range(1, out.ndim))
            positive = out[-len(guided) :].std(axes, ddof=1, keepdims=True)
            excess = positive / guided.std(axes, ddof=1, keepdims=True)
            guided *= 1 + self.rescale * (excess - 1)
        return guided


def classifier_free(batch: int, scale: float, rescale: float = 0.0) -> Guidance:
    """Ho & Salimans 2022, arXiv:2207.12598: (1 - g) * negative + g * positive.

    The first `batch` rows have the negative prompts; at scale 1 there are only positive ones.
    """
    scale, one = float(scale), np.eye(batch, dtype=np.float32)
    latent = np.arange(batch)
    if scale == 1.0:
        return Guidance(latent, one, plain=True)
    return Guidance(
        np.concatenate([latent, latent]), np.concatenate([(1 - scale) * one, scale * one], axis=1), rescale=rescale
    )


def guided_rows(plan: Plan, interval: tuple[float, float]) -> NDArray[np.bool_]:
    """Which rows of a plan have a noise level sigma / alpha inside the interval, (rows,): guidance harms at high levels
    and does nothing at low ones (Kynkäänniemi et al. 2024, arXiv:2404.07724, equation 6).
    """
    low, high = interval
    level = np.divide(plan.sigma, plan.alpha, out=np.full(plan.rows, np.inf), where=plan.alpha > 0)
    return (low < level) & (level <= high)


def positive_half(words: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What the network is told, of the positive prompts alone."""
    return {name: array[len(array) // 2 :] for name, array in words.items()}
