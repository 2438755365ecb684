"""Stochastic differential equations run backward (Song et al. 2021, arXiv:2011.13456): grids and rows of both kinds.

In the variance-exploding kind (VE) x = x0 + sigma * eps, the network is told sigma, and predicts the score, the
gradient of log p(x). In the variance-preserving kind (VP) it predicts eps.
"""

import math
from collections.abc import Iterator

import numpy as np

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.samplers.config import Config
from ldmrt.runtime.samplers.grid import Grid, Node
from ldmrt.runtime.samplers.schedule import Floats, linspace32
from ldmrt.runtime.samplers.solvers import Row, symbols


def ve_grid(c: Config, steps: int) -> Grid:
    """Make the grid of the VE predictor, as diffusers rounds it.

    Times run from 1 to `sampling_eps`; the network is told their noise levels. The latents have the levels of another
    grid, from `sigma_max` to `sigma_min`, at the place of each time in it, which diffusers finds in float32 and cuts
    off: two times may share a place.

    Raises:
        LdmrtError: The levels do not descend.
    """
    level = np.append(_levels(c, np.linspace(0, 1, steps)), 0.0)  # at -1 is the level after the least: none
    place = (linspace32(1, c["sampling_eps"], steps).astype(np.float32) * np.float32(steps - 1)).astype(int)
    told = np.append(_levels(c, np.linspace(1, c["sampling_eps"], steps)), 0.0)
    nodes, leads_to = (
        [Node(float(t), 1.0, float(sigma)) for t, sigma in zip(times, sigmas, strict=True)]
        for times, sigmas in ((told[:-1], level[place]), (told[1:], level[place - 1]))
    )
    return Grid(list(zip(nodes, leads_to, strict=True)), np.empty(0), c, prior_scale=float(c["sigma_max"]))


def ve_flow_grid(c: Config, steps: int) -> Grid:
    """Make the grid of VE's probability flow: the levels that the network is told, and after them none.

    Raises:
        LdmrtError: The levels do not descend.
    """
    told = _levels(c, np.linspace(1, c["sampling_eps"], steps))
    nodes = [Node(float(level), 1.0, float(level)) for level in told]
    chain = list(zip(nodes, [*nodes[1:], Node(0.0, 1.0, 0.0)], strict=True))
    return Grid(chain, np.empty(0), c, prior_scale=float(c["sigma_max"]))


def _levels(c: Config, t: Floats) -> Floats:
    """Return VE's noise levels at times from 0 to 1, (n,): geometric (appendix C)."""
    low, high = float(c["sigma_min"]), float(c["sigma_max"])
    if not low < high:
        raise LdmrtError("scheduler", "sigma_max is not above sigma_min", expected=f"above {low:g}", found=high)
    levels: Floats = low * (high / low) ** t
    return levels


def ve(grid: Grid) -> Iterator[Row]:
    """Correct by Langevin dynamics `correct_steps` times, then predict (algorithm 2; the predictor is equation 47).

    A corrector's row is that of step size 1; see `Langevin`. The last row draws no noise.
    """
    x, m, z, _ = symbols()
    for left, (node, to) in zip(range(len(grid) - grid.begin - 1, -1, -1), grid.walk(), strict=True):
        for _ in range(grid.config["correct_steps"]):
            yield node, [x + m + math.sqrt(2) * z]
        gained = node.sigma**2 - to.sigma**2  # g ** 2 over the step
        yield node, [x + gained * m + bool(left) * math.sqrt(gained) * z]


def vp_grid(c: Config, steps: int) -> Grid:
    """Make the grid of the VP equation: times from 1 to `sampling_eps`, told as timesteps of training.

    alpha is exp(-integral of beta / 2), for beta from `beta_min` to `beta_max` (equation 33).
    """
    low, high = c["beta_min"], c["beta_max"]
    nodes = []
    for t in np.linspace(1, c["sampling_eps"], steps).tolist():
        log = -0.25 * t**2 * (high - low) - 0.5 * t * low
        nodes.append(Node(t * (c["num_train_timesteps"] - 1), math.exp(log), math.sqrt(-math.expm1(2 * log))))
    return Grid(list(zip(nodes, [*nodes[1:], Node(0.0, 1.0, 0.0)], strict=True)), np.empty(0), c)


def vp(grid: Grid) -> Iterator[Row]:
    """Take Euler-Maruyama's steps of length 1 / N down the VP equation (equation 6). The last row draws no noise."""
    x, m, z, _ = symbols()
    c = grid.config
    for left, (node, _) in zip(range(len(grid) - grid.begin - 1, -1, -1), grid.walk(), strict=True):
        t = node.t / (c["num_train_timesteps"] - 1)
        share = (c["beta_min"] + t * (c["beta_max"] - c["beta_min"])) / len(grid)
        yield node, [(1 + share / 2) * x - share / node.sigma * m + bool(left) * math.sqrt(share) * z]
