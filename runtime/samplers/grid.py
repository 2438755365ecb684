"""Grids: the points (t, alpha, sigma) at which a network is evaluated. All in float64.

Every grid function takes the config of a scheduler, with every key of its class, and the number of steps.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ldmrt.runtime.errors import InvalidRequest

from .config import Config
from .schedule import (
    ZERO_SNR,
    Floats,
    Floats32,
    TrainedLevels,
    alphas_cumprod,
    karras,
    last_level,
    levels,
    respaced,
    spaced,
    spacing_of,
    split,
    times,
)


class Node(NamedTuple):
    """A node is a point of the diffusion: x = alpha * x0 + sigma * eps at model time t."""

    t: float
    alpha: float
    sigma: float

    @property
    def level(self) -> float:
        """Return sigma / alpha, the noise of latents that are not scaled (Karras et al. 2022)."""
        return self.sigma / self.alpha

    @property
    def lam(self) -> float:
        """Return lambda = log(alpha / sigma), half the log SNR; infinite without noise (Lu et al. 2022)."""
        return math.log(self.alpha / self.sigma) if self.sigma else math.inf


@dataclass(frozen=True)
class Grid:
    """Lists the steps of a sampler: the node at which each evaluates the network, and the node that it leads to.

    A step mostly leads to the next node, but DDIM's fixed stride may lead beside the grid.

    Attributes:
        steps: Pairs of nodes, from noise to image.
        abar: alpha_bar of the training timesteps, (T,); empty where a grid does not need them.
        config: The config of the scheduler.
        begin: The first step to take: img2img starts later, yet a solver may ask for the whole grid.
        prior_scale: The factor of unit noise that makes the first latents.
        unscaled: Whether diffusers keeps the latents of this grid as x0 + level * eps, x / alpha of the model's space.
    """

    steps: list[tuple[Node, Node]]
    abar: Floats
    config: Config
    begin: int = 0
    prior_scale: float = 1.0
    unscaled: bool = False

    def __len__(self) -> int:
        """Count all steps, with those before `begin`."""
        return len(self.steps)

    def walk(self) -> Iterator[tuple[Node, Node]]:
        """Iterate over the steps to take."""
        return iter(self.steps[self.begin :])

    def at(self, t: float) -> Node:
        """Return the node of a training timestep.

        Below 0 it is the last node: without noise, or with that of timestep 0 where `set_alpha_to_one` is false.

        Raises:
            InvalidRequest: The timestep is not one of training.
        """
        if t >= len(self.abar):
            expected = f"below {len(self.abar)}"
            raise InvalidRequest("scheduler", "the grid leaves the schedule", expected=expected, found=t)
        final = 1.0 if self.config.get("set_alpha_to_one", True) else self.abar[0]
        abar = float(self.abar[int(t)] if t >= 0 else final)
        return Node(float(t), math.sqrt(abar), math.sqrt(1 - abar))

    def between(self, level: float) -> Node:
        """Return the node of a noise level that lies between training timesteps."""
        return Node(float(times(np.array([level]), self.abar)[0]), *split(level))


def whole_grid(c: Config, steps: int, timesteps: Sequence[float] | None = None, *, strided: bool = False) -> Grid:
    """Make the grid of whole timesteps: that of DDPM and PNDM, and with `strided` that of DDIM.

    A step leads to the next timestep of the grid, or with `strided` T // steps timesteps down.
    """
    t = np.round(spaced(c, steps)) if timesteps is None else np.asarray(timesteps, np.float64)
    grid = Grid([], alphas_cumprod(c), c)
    to = t - c["num_train_timesteps"] // steps if strided else np.append(t[1:], -1)
    grid.steps.extend((grid.at(here), grid.at(there)) for here, there in zip(t, to, strict=True))
    return grid


def distilled_grid(
    c: Config,
    steps: int,
    timesteps: Sequence[float] | None = None,
    *,
    last: float | None,
    strength: float = 1.0,
) -> Grid:
    """Make the grid of LCM and TCD: the timesteps that they were distilled on, thinned.

    Args:
        c: The config of a scheduler with `original_inference_steps`.
        steps: How many of those timesteps to take.
        timesteps: The timesteps to take instead, descending.
        last: The timestep that the last step leads to; None where it leads nowhere.
        strength: The share of the distilled timesteps to thin, counted from the end.

    Raises:
        InvalidRequest: There are more steps than distilled timesteps.
    """
    original = c["original_inference_steps"]
    if timesteps is None:
        count = int(original * strength)
        if not 1 <= steps <= count:
            expected = f"1 to {count}" if count else f"a strength of at least {1 / original:g}"
            raise InvalidRequest("scheduler", "invalid number of steps", expected=expected, found=steps)
        distilled = np.arange(count, 0, -1) * (c["num_train_timesteps"] // original) - 1
        timesteps = distilled[np.floor(np.linspace(0, count, steps, endpoint=False)).astype(int)]
    grid = Grid([], alphas_cumprod(c), c)
    nodes = [grid.at(t) for t in timesteps]
    grid.steps.extend(_chained(nodes, nodes[-1] if last is None else grid.at(last)))
    return grid


def early_grid(
    c: Config,
    steps: int,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    *,
    whole: bool = False,
) -> Grid:
    """Make the grid of Euler, LMS, Heun and DPM-2, whose latents diffusers keeps unscaled.

    It has N timesteps, mostly not whole; respaced noise levels run between those of the first and the last.

    Args:
        c: The config of a scheduler.
        steps: N, where neither timesteps nor sigmas are chosen.
        timesteps: The timesteps, descending.
        sigmas: N + 1 noise levels, descending; the last one is where the sampler arrives.
        whole: Round the timesteps of Karras' levels, as DPM-2 does.

    Raises:
        InvalidRequest: Both timesteps and a spacing of noise levels are chosen.
        LdmrtError: The config is invalid.
    """
    train, spacing = TrainedLevels(c), spacing_of(c)
    _refuse_timesteps(spacing, timesteps)
    if sigmas is not None:
        level = np.asarray(sigmas, np.float64)
        t = times(level[:-1], train.abar32)
    else:
        t = spaced(c, steps) if timesteps is None else np.asarray(timesteps, np.float64)
        level = _early_levels(c, spacing, t, steps, train.level)
        if spacing:
            t = times(_early_levels(c, spacing, t, steps, train.level32), train.abar32)
            t = np.round(t) if whole and spacing == "karras_sigmas" else t
        level = np.append(level, last_level(c, float(train.level[0])))[: len(t) + 1]
    if c.get("timestep_type") == "continuous" and c["prediction_type"] == "v_prediction":
        t = np.log(level[:-1]) / 4
    nodes = _nodes(t, level)
    end = Node(0.0, 1.0, float(level[-1]))  # above 0, diffusers leaves the result unscaled
    prior_scale = 1.0 if c["timestep_spacing"] == "leading" else nodes[0].sigma
    return Grid(_chained(nodes, end), train.abar, c, prior_scale=prior_scale, unscaled=True)


def late_grid(c: Config, steps: int, timesteps: Sequence[float] | None = None, *, own_end: bool = False) -> Grid:
    """Make the grid of DPM-Solver, DEIS and UniPC.

    It has the first N of N + 1 whole timesteps; respaced noise levels run between the training's extremes.

    Args:
        c: The config of a scheduler.
        steps: N, where no timesteps are chosen.
        timesteps: The timesteps, descending.
        own_end: End respaced levels at the least of them, not at that of training.

    Raises:
        InvalidRequest: Both timesteps and a spacing of noise levels are chosen.
        LdmrtError: The config is invalid.
    """
    spacing = spacing_of(c)
    if spacing == "flow_sigmas":
        return _flow_grid(c, steps, own_end)
    _refuse_timesteps(spacing, timesteps)
    train = TrainedLevels(c)
    t = np.round(spaced(c, steps, extra=1) if timesteps is None else np.asarray(timesteps, np.float64))
    level = _late_levels(c, spacing, t, steps, train.level)
    if spacing:
        t = times(_late_levels(c, spacing, t, steps, train.level32), train.abar32)
        cosine = "use_lu_lambdas" in c and c["beta_schedule"] == "squaredcos_cap_v2"  # in DPMSolverMultistep alone
        t = np.round(t) if spacing in ("karras_sigmas", "lu_lambdas") and not cosine else np.trunc(t)
    least = level[-1] if spacing and own_end else train.level[0]
    level = np.append(level, last_level(c, float(least)))[: len(t) + 1]
    return Grid(_chained(_nodes(t, level), Node(0.0, *split(float(level[-1])))), train.abar, c)


def _nodes(t: Floats, level: Floats) -> list[Node]:
    """Pair timesteps, (n,), with noise levels, of which there may be more."""
    return [Node(float(time), *split(float(sigma))) for time, sigma in zip(t, level, strict=False)]


def _chained(nodes: Sequence[Node], end: Node) -> list[tuple[Node, Node]]:
    """Lead every node to the next, and the last to `end`."""
    return list(zip(nodes, [*nodes[1:], end], strict=True))


def _refuse_timesteps(spacing: str, timesteps: Sequence[float] | None) -> None:
    """Raise an `InvalidRequest` for chosen timesteps beside a spacing, which determines the timesteps itself."""
    if spacing and timesteps is not None:
        problem = f"timesteps cannot be chosen with use_{spacing}"
        raise InvalidRequest("scheduler", problem, expected=f"use_{spacing} false")


def _early_levels(c: Config, spacing: str, t: Floats, steps: int, train: Floats | Floats32) -> Floats:
    """Return the noise levels of timesteps t, or levels respaced between the first and the last of them, descending."""
    level = np.interp(t, np.arange(len(train)), train)
    if c.get("interpolation_type") == "log_linear":
        level = np.geomspace(train[-1], train[0], steps + 1)
    return respaced(c, spacing, steps, level, train) if spacing else level


def _late_levels(c: Config, spacing: str, t: Floats, steps: int, train: Floats | Floats32) -> Floats:
    """Return the noise levels of timesteps t, or levels respaced between the training's extremes, descending."""
    if spacing:
        return respaced(c, spacing, steps, train[::-1], train)
    return np.interp(t, np.arange(len(train)), train)


def _flow_grid(c: Config, steps: int, own_end: bool) -> Grid:
    """Make the grid of rectified flow (Liu et al. 2022): x = (1 - sigma) x0 + sigma eps.

    The levels are shifted as Esser et al. 2024 do, by `flow_shift`.
    """
    abar, total, shift = alphas_cumprod(c, zero=ZERO_SNR), c["num_train_timesteps"], c["flow_shift"]
    even = np.linspace(1, 1 / total, steps + 1)
    even = even[:-1] if "shift_terminal" in c else (1 - even)[:0:-1]  # UniPC counts from the other end
    sigma = shift * even / (1 + (shift - 1) * even)
    sigma[0] = min(sigma[0], 1 - 1e-6)  # alpha = 0 has no logarithm
    sigma = np.append(sigma, last_level(c, float(sigma[-1] if own_end else levels(abar)[0])))
    nodes = [Node(float(t), 1 - float(s), float(s)) for t, s in zip(np.trunc(sigma * total), sigma, strict=True)]
    return Grid(list(pairwise(nodes)), abar, c)


def edm_grid(c: Config, steps: int, *, own_end: bool = False) -> Grid:
    """Make the grid of Karras et al. 2022, table 1.

    The network sees (x0 + level * eps) / sqrt(level**2 + sigma_data**2) at time log(level) / 4.

    Args:
        c: The config of a scheduler with `sigma_max`, `sigma_min`, `sigma_data`, `sigma_schedule` and `rho`.
        steps: How many steps.
        own_end: Arrive at the last level of the grid, not at `sigma_min`, where `final_sigmas_type` is not zero.
    """
    ramp, high, low = np.linspace(0, 1, steps), c["sigma_max"], c["sigma_min"]
    if c["sigma_schedule"] == "karras":
        level = karras(high, low, ramp, c["rho"])
    else:
        level = np.geomspace(low, high, steps)[::-1]
    alpha = 1 / np.sqrt(level**2 + c["sigma_data"] ** 2)
    nodes = [Node(math.log(s) / 4, float(a), float(s * a)) for s, a in zip(level, alpha, strict=True)]
    end = Node(0.0, 1.0, last_level(c, float(level[-1]) if own_end else low))
    prior_scale = nodes[0].alpha * float(np.hypot(1, high))
    return Grid(_chained(nodes, end), np.empty(0), c, prior_scale=prior_scale)


def sine_grid(c: Config, steps: int) -> Grid:
    """Make the grid of improved PNDM, as its scheduler defines it: t from 1 to 0, sigma = sin(t pi / 2) ** 2."""
    t = np.linspace(1, 0, steps + 1)
    sigma = np.sin(t * np.pi / 2) ** 2
    alpha = np.sqrt(1 - sigma**2)
    t = np.arctan2(sigma, alpha) / np.pi * 2
    nodes = [Node(*map(float, node)) for node in zip(t, alpha, sigma, strict=True)]
    return Grid(list(pairwise(nodes)), np.empty(0), c)
