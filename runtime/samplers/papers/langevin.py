"""The corrector of score-based models: a step of Langevin dynamics at one noise level (Song et al. 2021, algorithm 4).

    x' = x + h m + sqrt(2 h) z        h = 2 (snr |z| / |m|) ** 2

with the score m and unit noise z. Its step size h depends on both, so no table can hold it: the table's row is that of
h = 1, and what `Langevin.sizes` returns weighs its m and z.
"""

import math
from dataclasses import dataclass

import numpy as np

from ldmrt.runtime.samplers.schedule import Floats
from ldmrt.runtime.tensors import Array


@dataclass(frozen=True)
class Langevin:
    """Tells which rows of a plan are corrections, and how large their steps are.

    Attributes:
        snr: The ratio of signal to noise that a step aims at.
        steps: How many corrections come before each row that predicts.
        by_batch: Take the mean norms of all images, as diffusers does, so that every image depends on the others of
            its batch; else each image has a step size of its own.
    """

    snr: float
    steps: int
    by_batch: bool = False

    def corrects(self, row: int) -> bool:
        """Tell whether a row is a correction."""
        return row % (self.steps + 1) < self.steps

    def sizes(self, m: Array, z: Array) -> Floats:
        """Compute the step size h of each image, (B,).

        Args:
            m: Scores, (B, C, h, w).
            z: Unit noise, (B, C, h, w).
        """
        score, noise = _norms(m), _norms(z)
        if self.by_batch:
            score, noise = np.full_like(score, score.mean()), np.full_like(noise, noise.mean())
        with np.errstate(divide="ignore", invalid="ignore"):  # a score of zero, after which the latents are not finite
            sizes: Floats = 2 * (self.snr * noise / score) ** 2
        return sizes


def _norms(images: Array) -> Floats:
    """Return the Euclidean norm of each image, (B,), to the bit the same in every batch."""
    lines = [np.einsum("chw,chw->ch", image, image) for image in images]
    return np.array([math.sqrt(line.sum(dtype=np.float64)) for line in lines])
