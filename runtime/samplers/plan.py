"""A sampler is a table: one row per network evaluation, run by one loop that keeps no state but its latents.

With x = alpha * x0 + sigma * eps in the model's own space, a row is a small matrix,

    (x, s1 .. sk)' = T @ (m, x, s1 .. sk, z, x0)

where s1 .. sk are latents saved by earlier rows, m is the (guided) prediction, z unit noise, and x0 the clean latents
that m predicts, kx * x + km * m, clipped where the plan clips.
"""

from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

import numpy as np

from ldmrt.runtime.tensors import Array

from .papers.langevin import Langevin
from .schedule import Floats

Latents = Array  # float32; float64 where the caller hands in float64
M, X, Z, X0 = 0, 1, -2, -1  # columns of a row, and operands; the saved latents stand between x and z


class Variance(Enum):
    """Tells how a sampler reads the second half of the network's output (Nichol & Dhariwal 2021)."""

    ABSENT = ""  # the network predicts no variance
    LEARNED = "learned"  # the variance of the row's noise
    LEARNED_RANGE = "learned_range"  # -1 to 1: where the variance lies between its smallest and its largest value
    IGNORED = "ignored"  # a variance that the solver has no use for


@dataclass(frozen=True, eq=False)
class Plan:
    """Holds a sampler that is solved for one grid: a table with one matrix per evaluation of the network.

    `plan_from_config` makes plans, `sample` and `steps` run them, and `print(plan)` shows their formulas. Plans are
    computed in float64; the latents that they move are float32.

    Attributes:
        t: Model time of each row, (rows,): 0 to 999 for Stable Diffusion.
        alpha: Factor of the clean latents where each row evaluates the network, (rows,).
        sigma: Factor of the noise there, (rows,).
        read: Weights kx, km of x0 = kx * x + km * m, (rows, 2).
        table: The matrices T, (rows, k + 1, k + 4) for k saved latents.
        prior_scale: The factor of unit noise that makes the first latents, or of the latents that another model left.
        first: The row of the whole plan that this one begins with, where it goes on with another model's latents.
        end_alpha: The factor of a clean image in the latents after the last row, which inpainting keeps.
        clip: Bound of |x0|; None where x0 is not clipped.
        threshold: Quantile and maximum of dynamic thresholding (Saharia et al. 2022, section 2.3), or None.
        variance: How the second half of the network's output is read.
        spread: Largest by smallest variance of each row, (rows,), for `Variance.LEARNED_RANGE` alone.
        langevin: Which rows are corrections, with a step size that the prediction decides; None for no such row.
    """

    t: Floats = field(repr=False)
    alpha: Floats = field(repr=False)
    sigma: Floats = field(repr=False)
    read: Floats = field(repr=False)
    table: Floats = field(repr=False)
    prior_scale: float = 1.0
    first: int = 0
    end_alpha: float = 1.0
    clip: float | None = None
    threshold: tuple[float, float] | None = None
    variance: Variance = Variance.ABSENT
    spread: Floats | None = field(default=None, repr=False)
    langevin: Langevin | None = None

    @property
    def rows(self) -> int:
        """How many times the network is evaluated."""
        return len(self.t)

    @property
    def predicts_variance(self) -> bool:
        """Whether the network predicts a variance beside the mean, in as many channels more."""
        return self.variance is not Variance.ABSENT

    def draws(self, row: int) -> bool:
        """Tell whether a row needs fresh noise."""
        return self._draws[row]

    @cached_property
    def _draws(self) -> list[bool]:
        return [bool(row[:, Z].any()) for row in self.table]

    def noised(self, x0: Latents, noise: Latents) -> Latents:
        """Add noise to the latents of an image, as a plan starts from it (img2img).

        Args:
            x0: Clean latents, (B, C, h, w).
            noise: Unit noise, (B, C, h, w).

        Returns:
            alpha * x0 + sigma * noise at the first row, (B, C, h, w): float64 where `x0` is, float32 else.
        """
        x: Latents = self.alpha[0] * x0 + self.sigma[0] * noise
        return x.astype(np.float64 if x0.dtype == np.float64 else np.float32)

    @property
    def hooked(self) -> bool:
        """Whether something that is not linear stands between the network and the row."""
        return self.bounds_x0 or self.langevin is not None

    @property
    def bounds_x0(self) -> bool:
        """Whether x0 is clipped or thresholded."""
        return self.clip is not None or self.threshold is not None

    @cached_property
    def fused(self) -> Floats:
        """Return the table for a plan with unbounded x0, with x0 = kx * x + km * m put in, (rows, k + 1, k + 3)."""
        out: Floats = self.table[..., :X0].copy()
        out[:, :, X] += self.table[..., X0] * self.read[:, :1]
        out[:, :, M] += self.table[..., X0] * self.read[:, 1:]
        return out

    def __str__(self) -> str:
        """Show each row's node and its formulas, such as "x' = +0.99 x +0.05 x0"."""
        saved = [f"s{i}" for i in range(1, self.table.shape[1])]
        inputs = ["m", "x", *saved, "z", "x0"]
        lines = [f"{'row':>3} {'t':>9} {'alpha':>8} {'sigma':>8}"]
        for row in range(self.rows):
            lines.append(f"{row:>3} {self.t[row]:>9.3f} {self.alpha[row]:>8.5f} {self.sigma[row]:>8.5f}")
            for output, weights in zip(["x", *saved], self.table[row], strict=True):
                terms = [f"{w:+.6g} {name}" for w, name in zip(weights, inputs, strict=True) if w]
                if terms:
                    lines[-1] += f"   {output}' = {' '.join(terms)}"
        return "\n".join(lines)
