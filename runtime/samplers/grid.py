"""Grids: the points (t, alpha, sigma) at which a network is evaluated. All in float64."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.nearest import suggestion

from .config import Config
from .schedule import (
    SPACED,
    ZERO_SNR,
    Floats,
    _float32_cumprod,
    alphas_cumprod,
    beta_quantile,
    karras,
    levels,
    split,
    times,
)


class Node(NamedTuple):
    """A point of the diffusion: x = alpha * x0 + sigma * eps at model time t."""

    t: float
    alpha: float
    sigma: float

    @property
    def level(self) -> float:
        """sigma / alpha: the noise of latents that are not scaled (Karras et al. 2022)."""
        return self.sigma / self.alpha

    @property
    def lam(self) -> float:
        """lambda = log(alpha / sigma), half the log SNR; infinite without noise (Lu et al. 2022)."""
        return math.log(self.alpha / self.sigma) if self.sigma else math.inf


@dataclass(frozen=True)
class Grid:
    """Where each step evaluates the network, and where it leads: mostly the next node, but DDIM's fixed stride may
    lead beside the grid.

    `begin` is the first step to take: img2img starts later, yet a solver may ask for the whole grid.
    """

    steps: list[tuple[Node, Node]]
    abar: Floats  # (T,) alpha_bar of the training timesteps
    config: Config
    begin: int = 0

    def __len__(self) -> int:
        return len(self.steps)

    def walk(self) -> Iterator[tuple[Node, Node]]:
        """Iterate over the steps to take."""
        return iter(self.steps[self.begin :])

    def at(self, t: float) -> Node:
        """The node of a training timestep; below 0 the last one, without noise or as `set_alpha_to_one` says."""
        if t >= len(self.abar):
            raise LdmrtError("scheduler", "the grid leaves the schedule", expected=f"below {len(self.abar)}", found=t)
        final = 1.0 if self.config.get("set_alpha_to_one", True) else self.abar[0]
        abar = float(self.abar[int(t)] if t >= 0 else final)
        return Node(float(t), math.sqrt(abar), math.sqrt(1 - abar))

    def between(self, level: float) -> Node:
        """The node of a noise level that lies between training timesteps."""
        return Node(float(times(np.array([level]), self.abar)[0]), *split(level))


def spaced(c: Config, steps: int, *, extra: int = 0) -> Floats:
    """Descending timesteps as diffusers spaces them, (steps,). `extra` is 1 for solvers that drop the last of N + 1."""
    total = c["num_train_timesteps"]
    spacing, last = c.get("timestep_spacing", "linspace"), total
    if steps + extra > total:
        raise LdmrtError("scheduler", "invalid number of steps", expected=f"1 to {total - extra}", found=steps)
    if c.get("lambda_min_clipped", -math.inf) > -math.inf:
        last -= int(np.searchsorted(-np.log(levels(alphas_cumprod(c, zero=ZERO_SNR)))[::-1], c["lambda_min_clipped"]))
    if spacing == "linspace":
        return np.linspace(0, last - 1, steps + extra, dtype=np.float64)[::-1][:steps]
    if spacing == "leading":
        grid: Floats = np.arange(steps + extra, dtype=np.float64) * (last // (steps + extra))
        return grid[::-1][:steps] + float(c["steps_offset"])
    if spacing == "trailing":
        down: Floats = np.arange(last, 0, -total / steps)
        return down[:steps].round() - 1.0
    problem = f"no timestep_spacing {spacing!r}{suggestion(spacing, SPACED)}"
    raise LdmrtError("scheduler", problem, expected="leading, linspace or trailing")


def whole_grid(c: Config, steps: int, timesteps: Sequence[float] | None = None, *, strided: bool = False) -> Grid:
    """Whole timesteps: DDIM (`strided`: each step leads T // steps down), DDPM (to the next of the grid), PNDM."""
    t = np.round(spaced(c, steps)) if timesteps is None else np.asarray(timesteps, np.float64)
    grid = Grid([], alphas_cumprod(c), c)
    to = t - c["num_train_timesteps"] // steps if strided else np.append(t[1:], -1)
    grid.steps.extend((grid.at(here), grid.at(there)) for here, there in zip(t, to, strict=True))
    return grid


def distilled_grid(
    c: Config, steps: int, timesteps: Sequence[float] | None = None, *, last: float | None, strength: float = 1.0
) -> Grid:
    """The timesteps that LCM and TCD were distilled on, thinned; of those only the share `strength`, counted from the
    end. The last step leads to `last`, or nowhere.
    """
    original = c["original_inference_steps"]
    if timesteps is None:
        count = int(original * strength)
        if not 1 <= steps <= count:
            expected = f"1 to {count}" if count else f"a strength of at least {1 / original:g}"
            raise LdmrtError("scheduler", "invalid number of steps", expected=expected, found=steps)
        taught = np.arange(count, 0, -1) * (c["num_train_timesteps"] // original) - 1
        timesteps = taught[np.floor(np.linspace(0, count, steps, endpoint=False)).astype(int)]
    grid = Grid([], alphas_cumprod(c), c)
    points = [grid.at(t) for t in timesteps]
    return Grid(
        list(zip(points, [*points[1:], points[-1] if last is None else grid.at(last)], strict=True)), grid.abar, c
    )


def level_grid(
    c: Config,
    steps: int,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    *,
    early: bool = False,
    whole: bool = True,
    own_end: bool = False,
) -> Grid:
    """Noise levels, and the timesteps that they stand for: all solvers that diffusers writes with sigmas.

    `early` is the older way (Euler, LMS, Heun, DPM2): N real timesteps, levels respaced between those of the first
    and last. The other way drops the last of N + 1 whole timesteps and respaces between the training's extremes.
    `whole` rounds the timesteps of Karras' levels. `own_end` ends respaced levels at their own least one.
    """
    abar, how = alphas_cumprod(c, zero=ZERO_SNR), _respacing(c)
    if how == "flow_sigmas":
        return _flow_nodes(c, steps, abar, own_end)
    if how and timesteps is not None:
        raise LdmrtError("scheduler", f"timesteps cannot be chosen with use_{how}", expected=f"use_{how} false")
    rounded = _float32_cumprod(c)
    if sigmas is not None:
        level = np.asarray(sigmas, np.float64)
        t = times(level[:-1], rounded)
    else:
        t = spaced(c, steps, extra=not early) if timesteps is None else np.asarray(timesteps, np.float64)
        t = t if early else np.round(t)
        level, exact = (_respaced(c, how, t, steps, train, early) for train in (levels(abar), levels(rounded)))
        if how:
            t = times(exact, rounded)
            free = "use_lu_lambdas" in c and c["beta_schedule"] == "squaredcos_cap_v2"  # of DPMSolverMultistep
            t = np.round(t) if whole and not free and how in ("karras_sigmas", "lu_lambdas") else t
            t = t if early else np.trunc(t)
        level = np.append(level, _end(c, float(level[-1] if how and own_end else levels(abar)[0])))[: len(t) + 1]
    if c.get("timestep_type") == "continuous" and c["prediction_type"] == "v_prediction":
        t = np.log(level[:-1]) / 4
    points = [Node(float(time), *split(float(one))) for time, one in zip(t, level, strict=False)]
    # Where these solvers stop at a level above 0, diffusers' early ones leave their result unscaled.
    end = (1.0, float(level[-1])) if early else split(float(level[-1]))
    return Grid(list(zip(points, [*points[1:], Node(0.0, *end)], strict=True)), abar, c)


def _respacing(c: Config) -> str:
    kinds = ("karras_sigmas", "lu_lambdas", "exponential_sigmas", "beta_sigmas", "flow_sigmas")
    asked = [kind for kind in kinds if c.get(f"use_{kind}")]
    if len(asked) > 1:
        raise LdmrtError("scheduler", "two spacings of the noise levels", expected="one", found=", ".join(asked))
    return asked[0] if asked else ""


def _respaced(c: Config, how: str, t: Floats, steps: int, train: Floats, early: bool) -> Floats:
    """Return noise levels, descending."""
    level = np.interp(t, np.arange(len(train)), train)
    if c.get("interpolation_type") == "log_linear":
        level = np.geomspace(train[-1], train[0], steps + 1)
    if not how:
        return level
    between = level if early else train[::-1]
    high, low = (float(c.get(f"sigma_{end}") or between[i]) for end, i in (("max", 0), ("min", -1)))
    if how == "beta_sigmas":  # Lee et al. 2024
        return low + beta_quantile(1 - np.linspace(0, 1, steps)) * (high - low)
    if how == "lu_lambdas":  # of exactly the logarithms that `times` compares with
        logs = np.log(train)
        return np.exp(np.linspace(float(logs[-1]), float(logs[0]), steps))
    return karras(high, low, np.linspace(0, 1, steps)) if how == "karras_sigmas" else np.geomspace(high, low, steps)


def _end(c: Config, least: float) -> float:
    """The noise level that the last step leads to."""
    ends, end = {"zero": 0.0, "sigma_min": least}, c["final_sigmas_type"]
    if end not in ends:
        problem = f"no final_sigmas_type {end!r}{suggestion(end, ends)}"
        raise LdmrtError("scheduler", problem, expected=" or ".join(ends))
    return ends[end]


def _flow_nodes(c: Config, steps: int, abar: Floats, own_end: bool) -> Grid:
    """Rectified flow (Liu et al. 2022): x = (1 - sigma) x0 + sigma eps, with the levels shifted (Esser et al. 2024)."""
    total, shift = c["num_train_timesteps"], c["flow_shift"]
    even = np.linspace(1, 1 / total, steps + 1)
    even = even[:-1] if "shift_terminal" in c else (1 - even)[:0:-1]  # UniPC counts from the other end
    sigma = shift * even / (1 + (shift - 1) * even)
    sigma[0] = min(sigma[0], 1 - 1e-6)  # alpha = 0 has no logarithm
    sigma = np.append(sigma, _end(c, float(sigma[-1] if own_end else levels(abar)[0])))
    grid = [Node(float(t), 1 - float(s), float(s)) for t, s in zip(np.trunc(sigma * total), sigma, strict=True)]
    return Grid(list(pairwise(grid)), abar, c)


def edm_grid(c: Config, steps: int, *, own_end: bool = False) -> Grid:
    """Karras et al. 2022: the network sees (x0 + level * eps) / sqrt(level**2 + sigma_data**2) at log(level) / 4."""
    ramp, high, low = np.linspace(0, 1, steps), c["sigma_max"], c["sigma_min"]
    kinds = {
        "karras": lambda: karras(high, low, ramp, c["rho"]),
        "exponential": lambda: np.geomspace(low, high, steps)[::-1],
    }
    level = kinds[c["sigma_schedule"]]()
    alpha = 1 / np.sqrt(level**2 + c["sigma_data"] ** 2)
    grid = [Node(math.log(s) / 4, float(a), float(s * a)) for s, a in zip(level, alpha, strict=True)]
    end = Node(0.0, 1.0, _end(c, float(level[-1]) if own_end else low))
    return Grid(list(zip(grid, [*grid[1:], end], strict=True)), np.empty(0), c)


def sine_grid(c: Config, steps: int) -> Grid:
    """The grid of improved PNDM, as its scheduler defines it: t from 1 to 0, sigma = sin(t pi / 2) ** 2."""
    t = np.linspace(1, 0, steps + 1)
    sigma = np.sin(t * np.pi / 2) ** 2
    alpha = np.sqrt(1 - sigma**2)
    t = np.arctan2(sigma, alpha) / np.pi * 2
    grid = [Node(*map(float, node)) for node in zip(t, alpha, sigma, strict=True)]
    return Grid(list(pairwise(grid)), np.empty(0), c)
