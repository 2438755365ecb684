"""A sampler is a table: one row per network evaluation, run by one loop that keeps no state but the rows' registers.

With x = alpha * x0 + sigma * eps in the model's own space, a row is

    d0     = kx * x + km * m                                    what the network says, as x0
    (x, s) = C @ (x, s, d0, d1, d2, d3, d4, z)                  2 x 8 numbers; then the history d shifts by one

m is the (guided) network output, s one saved latent, d0..d4 the history of x0, z unit noise.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .errors import LdmrtError
from .schedule import Floats, Nodes

X, S, D0, D1, Z = 0, 1, 2, 3, 7  # columns of a row
Latents = NDArray[np.float32]
Model = Callable[[Latents, float], Latents]
Noise = Callable[[int], Latents]


@dataclass(frozen=True)
class Plan:
    """A sampler, solved for one grid. Computed in float64; the state it moves is float32."""

    t: Floats = field(repr=False)  # (rows,) model time
    read: Floats = field(repr=False)  # (rows, 2): kx, km
    table: Floats = field(repr=False)  # (rows, 2, 8)
    alpha: Floats = field(repr=False)  # (rows,) of the nodes
    sigma: Floats = field(repr=False)
    prior_scale: float = 1.0  # the first latents are this times unit noise

    @property
    def rows(self) -> int:
        """How many times the network is evaluated."""
        return len(self.t)

    def draws(self, row: int) -> bool:
        """Whether a row needs fresh noise."""
        return bool(self.table[row, :, Z].any())

    def noised(self, x0: Latents, noise: Latents) -> Latents:
        """The latents at the first node, for a plan that starts from a picture."""
        return (self.alpha[0] * x0 + self.sigma[0] * noise).astype(np.float32)


@dataclass(frozen=True)
class State:
    """The latents after `row`, and what the network said there."""

    row: int
    rows: int
    x: Latents = field(repr=False)  # (B, C, h, w)
    x0: Latents = field(repr=False)  # the same, as a clean picture: the preview


def steps(plan: Plan, x: Latents, model: Model, noise: Noise | None = None) -> Iterator[State]:
    """Run a plan from the latents `x`, (B, C, h, w), and yield after every row.

    `model(x, t)` is given latents in the model's own space; `noise(row)` is unit noise like x, asked for only where
    the plan draws.
    """
    registers = np.zeros((8, *x.shape), np.float32)
    registers[X] = x
    for row in range(plan.rows):
        kx, km = plan.read[row].astype(np.float32)
        registers[D0] = kx * registers[X] + km * model(registers[X], float(plan.t[row]))
        if plan.draws(row):
            if noise is None:
                raise LdmrtError("sampler", "this plan draws noise", expected="noise(row)", found=None)
            registers[Z] = noise(row)
        moved = plan.table[row].astype(np.float32) @ registers.reshape(8, -1)
        registers[X], registers[S] = moved.reshape(2, *x.shape)
        yield State(row, plan.rows, registers[X].copy(), registers[D0].copy())
        registers[D1:Z] = registers[D0 : Z - 1]  # NumPy minds the overlap


def sample(plan: Plan, x: Latents, model: Model, noise: Noise | None = None) -> Latents:
    """The latents after the last row of `steps`."""
    for state in steps(plan, x, model, noise):
        x = state.x
    return x


def read(prediction: str, nodes: Nodes) -> Floats:
    """(kx, km) of d0 = kx * x + km * m = x0, by what the network predicts."""
    alpha, sigma = nodes.alpha, nodes.sigma
    reads = {
        "epsilon": (1 / alpha, -sigma / alpha),
        "sample": (0 * alpha, 1 + 0 * alpha),
        "v_prediction": (alpha, -sigma),  # Salimans & Ho 2022, appendix D
    }
    if prediction not in reads:
        raise LdmrtError("scheduler", f"no prediction_type {prediction!r}", expected=", ".join(reads))
    return np.stack(reads[prediction], axis=-1)


def euler(nodes: Nodes, eta: float) -> Floats:
    """DDIM (Song et al. 2021, equation 12), which is Euler's method on the probability flow; eta = 1 is DDPM and
    Euler ancestral. x' = a' x0 + sqrt(s'^2 - n^2) eps + n z, with eps = (x - a x0) / s.
    """
    a, s, a1, s1 = nodes.alpha, nodes.sigma, nodes.to_alpha, nodes.to_sigma
    n = eta * s1 / s * np.sqrt(np.maximum(0.0, 1 - (a / a1) ** 2))
    toward = np.sqrt(np.maximum(0.0, s1**2 - n**2)) / s
    table = np.zeros((len(nodes), 2, 8))
    table[:, X, X] = toward
    table[:, X, D0] = a1 - toward * a
    table[:, X, Z] = n
    return table


def dpmpp_2m(nodes: Nodes, first_order_final: bool) -> Floats:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2), with lambda = log(alpha / sigma):
    x' = s'/s x - a' (exp(-h) - 1) ((1 + 1/2r) x0 - 1/2r x0_before), r = h_before / h.
    """
    a, s, a1, s1 = nodes.alpha, nodes.sigma, nodes.to_alpha, nodes.to_sigma
    with np.errstate(divide="ignore", invalid="ignore"):
        h = np.log(a1 / s1) - np.log(a / s)  # infinite where the step ends at sigma = 0
    table = np.zeros((len(nodes), 2, 8))
    table[:, X, X] = s1 / s
    pull = -a1 * np.expm1(-h)
    table[:, X, D0] = pull
    for i in range(1, len(nodes)):
        if np.isinf(h[i]) or (first_order_final and i == len(nodes) - 1):
            continue
        half = h[i] / h[i - 1] / 2
        table[i, X, D0] = pull[i] * (1 + half)
        table[i, X, D1] = -pull[i] * half
    return table
