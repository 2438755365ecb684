"""A sampler is a table: one row per network evaluation, run by one loop that keeps no state but its latents.

With x = alpha * x0 + sigma * eps in the model's own space, a row is a small matrix,

    (x, s1 .. sk)' = T @ (m, x, s1 .. sk, z, x0)

where s1 .. sk are latents saved by earlier rows, m the (guided) network output, z unit noise, and x0 what the network
says as a clean image, kx * x + km * m, clipped where the plan clips.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .schedule import Floats

Latents = NDArray[Any]  # float32; float64 where the caller hands in float64
M, X, Z, X0 = 0, 1, -2, -1  # columns of a row, and operands; the saved latents stand between x and z


@dataclass(frozen=True, eq=False)
class Plan:
    """A sampler, solved for one grid. Computed in float64; the state it moves is float32."""

    t: Floats = field(repr=False)  # (rows,) model time
    alpha: Floats = field(repr=False)  # (rows,) of the nodes
    sigma: Floats = field(repr=False)
    read: Floats = field(repr=False)  # (rows, 2): kx, km of x0
    table: Floats = field(repr=False)  # (rows, k + 1, k + 4)
    prior_scale: float = 1.0  # the first latents are this times unit noise, or times what another model left
    first: int = 0  # the row of the whole plan that it begins with, where it goes on with another model's latents
    end_alpha: float = 1.0  # of a clean image in the latents after the last row: what inpainting keeps
    clip: float | None = None  # x0 is held within +- this
    threshold: tuple[float, float] | None = None  # quantile and maximum (Saharia et al. 2022, section 2.3)
    learned: str = ""  # the network's second half is the variance ("learned"), or a place in its "learned_range"
    spread: Floats | None = field(default=None, repr=False)  # (rows,) of that range: largest by smallest

    @property
    def rows(self) -> int:
        """How many times the network is evaluated."""
        return len(self.t)

    def draws(self, row: int) -> bool:
        """Whether a row needs fresh noise."""
        return self._draws[row]

    @cached_property
    def _draws(self) -> list[bool]:
        return [bool(row[:, Z].any()) for row in self.table]

    def noised(self, x0: Latents, noise: Latents) -> Latents:
        """The latents at the first node, for a plan that starts from an image."""
        return (self.alpha[0] * x0 + self.sigma[0] * noise).astype(_dtype(x0))

    @property
    def hooked(self) -> bool:
        """Whether something that is not linear stands between the network and the row."""
        return self.clip is not None or self.threshold is not None

    @cached_property
    def folded(self) -> Floats:
        """The table with x0 = kx * x + km * m put in: what a plan without hooks computes, (rows, k + 1, k + 3)."""
        out = self.table[..., :X0].copy()
        out[:, :, X] += self.table[..., X0] * self.read[:, :1]
        out[:, :, M] += self.table[..., X0] * self.read[:, 1:]
        return out

    def __str__(self) -> str:
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


def _dtype(x: Latents) -> Any:
    return np.float64 if x.dtype == np.float64 else np.float32
