"""Guidance as a matrix: the network runs on N rows of conditioning, and m = W @ out weighs them per latent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.tensors import Array, Arrays

from .plan import Plan
from .schedule import Floats32

HIGHEST = 1e30  # the largest end of an interval that a request may have


@dataclass(frozen=True)
class Guidance:
    """Tells which latents each of N network rows sees, and how their outputs combine.

    Attributes:
        idx: Index of the latents that each network row sees, (N,).
        weights: The weight of every row for every latent, (batch, N). Where the rows are k blocks of one row for each
            latent, in order, (batch, k) holds all that is not zero, and grows with the batch, not with its square.
        plain: Whether the weights are the identity, so that there is nothing to combine.
        rescale: The share by which the deviation of each prediction is moved back to that of its positive prompt.
        most: How many times the norm of a prediction may be that of its positive prompt; 0 is any number.
    """

    idx: NDArray[np.int64]
    weights: Floats32
    plain: bool = False
    rescale: float = 0.0
    most: float = 0.0

    def combine(self, out: Floats32, into: Floats32 | None = None, channels: int | None = None) -> Floats32:
        """Combine the network's outputs into one guided prediction for each latent.

        Strong guidance overexposes, which `rescale` takes back (Lin et al. 2023, arXiv:2305.08891, equations 15
        and 16).

        Args:
            out: Outputs of the network rows, (N, C, h, w).
            into: Where to write the prediction, (batch, C, h, w); a new array where it is None.
            channels: Channels of the mean where the network predicts a variance too. Guidance is for the mean alone;
                the variance is that of each latent's last row, its positive prompt's.

        Returns:
            The guided prediction, (batch, C, h, w): `out` itself where there is nothing to combine.
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
        if self.most:
            positive, norm = _norms(mean[-len(guided) :]), _norms(guided)
            guided *= np.minimum(1, np.divide(self.most * positive, norm, out=np.ones_like(norm), where=norm > 0))
        if mean.shape[1] == out.shape[1]:
            return guided
        last = [np.flatnonzero(self.idx == latent)[-1] for latent in range(len(guided))]
        return np.concatenate([guided, out[last, channels:]], axis=1)

    def _weighted(self, rows: Floats32, guided: Floats32) -> None:
        """Weigh rows, (N, numbers), into `guided`, (batch, numbers).

        They are weighed latent by latent, so that the numbers of one do not depend on how many stand beside it.
        """
        batch, each = self.weights.shape
        if each == len(rows) and batch > 1:
            for own, into in zip(self.weights, guided, strict=True):
                np.dot(own[own != 0], rows[own != 0], out=into)
        elif each == len(rows):
            np.dot(self.weights, rows, out=guided)
        else:
            blocks = rows.reshape(each, batch, -1).swapaxes(0, 1)
            np.matmul(self.weights[:, None], blocks, out=guided[:, None])

    @property
    def matrix(self) -> Floats32:
        """Return the weight of every row for every latent, (batch, N), as the fused step takes it."""
        batch, each = self.weights.shape
        if each == len(self.idx):
            return self.weights
        dense = np.zeros((batch, each, batch), np.float32)
        latent = np.arange(batch)
        dense[latent, :, latent] = self.weights
        return dense.reshape(batch, -1)


def _norms(latents: Floats32) -> Floats32:
    """Return the norm of each prediction (batch, C, h, w), (batch, 1, 1, 1)."""
    norms: Floats32 = np.sqrt(np.square(latents).sum((1, 2, 3), keepdims=True))
    return norms


def guide(batch: int, scales: Sequence[float], rescale: float = 0.0, most: float = 0.0) -> Guidance:
    """Weigh rows of less and more conditioning, p0 + s1 (p1 - p0) + s2 (p2 - p1) + ... .

    One scale is classifier-free guidance, two are that of InstructPix2Pix (Brooks et al. 2023, arXiv:2211.09800,
    equation 3).

    Args:
        batch: Number of latents; the network runs on one block of so many rows after another.
        scales: One for each row but the first; without any there is one row and nothing to combine.
        rescale: The share of `Guidance.rescale`, 0 to 1.
        most: The number of `Guidance.most`.
    """
    if not scales:
        return classifier_free(batch, 1.0)
    each = np.append(1.0, scales) - np.append(scales, 0.0)
    weights = np.tile(each.astype(np.float32), (batch, 1))
    return Guidance(np.tile(np.arange(batch), len(each)), weights, rescale=rescale, most=most)


def compose(parts: Sequence[Sequence[float]], scale: float) -> Guidance:
    """Weigh several prompts for each latent, n + scale * sum(w_k (p_k - n)), with n of the negative prompt.

    Composable diffusion (Liu et al. 2022, arXiv:2206.01714, equation 11).

    Args:
        parts: For each latent the weights w_k of its prompts. The network runs on the negative prompt of each latent,
            then on all prompts of the first latent, of the second, and so on.
        scale: The guidance scale; 1 is none, and still reads the negative prompts.
    """
    batch, counts = len(parts), [len(weights) for weights in parts]
    idx = np.concatenate([np.arange(batch), np.repeat(np.arange(batch), counts)])
    weights = np.zeros((batch, len(idx)), np.float32)
    first = batch
    for latent, own in enumerate(parts):
        weights[latent, first : first + len(own)] = scale * np.array(own)
        weights[latent, latent] = 1 - scale * sum(own)
        first += len(own)
    return Guidance(idx, weights)


def classifier_free(batch: int, scale: float, rescale: float = 0.0) -> Guidance:
    """Make classifier-free guidance: (1 - scale) * negative + scale * positive (Ho & Salimans 2022, arXiv:2207.12598).

    Args:
        batch: Number of latents. The first `batch` network rows have the negative prompts, the others the positive
            ones; at scale 1 there are only positive ones.
        scale: The guidance scale; 1 is none.
        rescale: The share of `Guidance.rescale`, 0 to 1.
    """
    if scale == 1.0:
        return Guidance(np.arange(batch), np.ones((batch, 1), np.float32), plain=True)
    return guide(batch, [float(scale)], rescale)


def guided_rows(plan: Plan, interval: tuple[float, float]) -> NDArray[np.bool_]:
    """Find the rows of a plan whose noise level sigma / alpha is inside an interval, (rows,).

    Guidance harms at high levels and does nothing at low ones (Kynkäänniemi et al. 2024, arXiv:2404.07724, equation 6).
    Noise alone, such as the first row of a flow has, counts as `HIGHEST`.
    """
    low, high = interval
    level = np.divide(plan.sigma, plan.alpha, out=np.full(plan.rows, HIGHEST), where=plan.alpha > 0)
    inside: NDArray[np.bool_] = (low < level) & (level <= high)
    return inside


def skipping_rows(plan: Plan, steps: int, start: float, stop: float) -> NDArray[np.bool_]:
    """Find the rows i of a plan at which guidance by skipped layers is on, (rows,): steps * start < i < steps * stop.

    diffusers' StableDiffusion3Pipeline counts i from 0 at every evaluation of the network, of which some samplers have
    more than `steps`.
    """
    row = plan.first + np.arange(plan.rows)
    inside: NDArray[np.bool_] = (row > steps * start) & (row < steps * stop)
    return inside


def last_rows(conditioning: Mapping[str, Array], batch: int) -> Arrays:
    """Return the last block of every array, which is the full conditioning, (batch, ...)."""
    return {name: array[-batch:] for name, array in conditioning.items()}
