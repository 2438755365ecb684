"""Noise schedules and the grids that a scheduler_config.json asks for. All in float64."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.nearest import suggestion

from .config import Config

Floats = NDArray[np.float64]
ZERO_SNR = 2.0**-24  # what diffusers puts for a signal of zero where it must divide by it
BETAS, SPACED = ("linear", "scaled_linear", "squaredcos_cap_v2"), ("leading", "linspace", "trailing")
RHO = 7.0  # of Karras et al. 2022, table 1


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
class Nodes:
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


def split(level: float) -> tuple[float, float]:
    """(alpha, sigma) of a noise level, of unit variance."""
    alpha = 1 / math.sqrt(1 + level**2)
    return alpha, level * alpha


def levels(abar: Floats) -> Floats:
    """sigma / alpha of each training timestep, (T,)."""
    out: Floats = np.sqrt((1 - abar) / abar)
    return out


def times(level: Floats, abar: Floats) -> Floats:
    """The training timestep of noise levels, interpolated in their logarithm."""
    return np.interp(np.log(np.maximum(level, 1e-10)), np.log(levels(abar)), np.arange(len(abar)))


def betas(c: Config, line: Any = np.linspace) -> Floats:
    """beta_1 .. beta_T of the forward process, (T,)."""
    if c["trained_betas"] is not None:
        return np.asarray(c["trained_betas"], np.float64)
    count, first, last, kind = c["num_train_timesteps"], c["beta_start"], c["beta_end"], c["beta_schedule"]
    if kind == "linear":  # Ho et al. 2020
        return line(first, last, count)
    if kind == "scaled_linear":  # Rombach et al. 2022
        return line(first**0.5, last**0.5, count) ** 2
    if kind == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, equation 17
        edges: Floats = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1.0 - edges[1:] / edges[:-1], 0.999)
    problem = f"no beta_schedule {kind!r}{suggestion(kind, BETAS)}"
    raise LdmrtError("scheduler", problem, expected="linear, scaled_linear or squaredcos_cap_v2")


def alphas_cumprod(c: Config, *, zero: float = 0.0) -> Floats:
    """alpha_bar_t, the share of signal power after t + 1 steps of noising, (T,).

    With `rescale_betas_zero_snr` (Lin et al. 2023, algorithm 1) the last one is `zero`.
    """
    abar: Floats = np.cumprod(1.0 - betas(c), dtype=np.float64)
    if c.get("rescale_betas_zero_snr"):
        root = np.sqrt(abar)
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        abar[-1] = zero
    return abar


def _float32_cumprod(c: Config) -> Floats:
    """`alphas_cumprod` with the roundings of torch in float32: whether a level's timestep is 999 or 998.9999, and so
    truncated to 998, hangs on them.
    """

    def line(first: float, last: float, count: int) -> NDArray[np.float32]:  # torch.linspace: from both ends
        low, high, i = np.float32(first), np.float32(last), np.arange(count)
        stride = float((high - low) / np.float32(count - 1))
        return np.where(i < count // 2, low + stride * i, high - stride * (count - 1 - i)).astype(np.float32)

    if c.get("rescale_betas_zero_snr"):
        return alphas_cumprod(c, zero=ZERO_SNR).astype(np.float32)
    return np.cumprod(1 - betas(c, line).astype(np.float32), dtype=np.float64).astype(np.float32)


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


def whole_nodes(c: Config, steps: int, timesteps: Sequence[float] | None = None, *, strided: bool = False) -> Nodes:
    """Whole timesteps: DDIM (`strided`: each step leads T // steps down), DDPM (to the next of the grid), PNDM."""
    t = np.round(spaced(c, steps)) if timesteps is None else np.asarray(timesteps, np.float64)
    nodes = Nodes([], alphas_cumprod(c), c)
    to = t - c["num_train_timesteps"] // steps if strided else np.append(t[1:], -1)
    nodes.steps.extend((nodes.at(here), nodes.at(there)) for here, there in zip(t, to, strict=True))
    return nodes


def distilled_nodes(
    c: Config, steps: int, timesteps: Sequence[float] | None = None, *, last: float | None, strength: float = 1.0
) -> Nodes:
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
    nodes = Nodes([], alphas_cumprod(c), c)
    grid = [nodes.at(t) for t in timesteps]
    return Nodes(list(zip(grid, [*grid[1:], grid[-1] if last is None else nodes.at(last)], strict=True)), nodes.abar, c)


def level_nodes(
    c: Config,
    steps: int,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    *,
    early: bool = False,
    whole: bool = True,
    own_end: bool = False,
) -> Nodes:
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
    grid = [Node(float(time), *split(float(one))) for time, one in zip(t, level, strict=False)]
    # Where these solvers stop at a level above 0, diffusers' early ones leave their result unscaled.
    end = (1.0, float(level[-1])) if early else split(float(level[-1]))
    return Nodes(list(zip(grid, [*grid[1:], Node(0.0, *end)], strict=True)), abar, c)


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


def karras(high: float, low: float, ramp: Floats, rho: float = RHO) -> Floats:
    """Karras et al. 2022, equation 5, at `ramp` between 0 and 1."""
    out: Floats = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return out


def _end(c: Config, least: float) -> float:
    """The noise level that the last step leads to."""
    ends, end = {"zero": 0.0, "sigma_min": least}, c["final_sigmas_type"]
    if end not in ends:
        problem = f"no final_sigmas_type {end!r}{suggestion(end, ends)}"
        raise LdmrtError("scheduler", problem, expected=" or ".join(ends))
    return ends[end]


def _flow_nodes(c: Config, steps: int, abar: Floats, own_end: bool) -> Nodes:
    """Rectified flow (Liu et al. 2022): x = (1 - sigma) x0 + sigma eps, with the levels shifted (Esser et al. 2024)."""
    total, shift = c["num_train_timesteps"], c["flow_shift"]
    even = np.linspace(1, 1 / total, steps + 1)
    even = even[:-1] if "shift_terminal" in c else (1 - even)[:0:-1]  # UniPC counts from the other end
    sigma = shift * even / (1 + (shift - 1) * even)
    sigma[0] = min(sigma[0], 1 - 1e-6)  # alpha = 0 has no logarithm
    sigma = np.append(sigma, _end(c, float(sigma[-1] if own_end else levels(abar)[0])))
    grid = [Node(float(t), 1 - float(s), float(s)) for t, s in zip(np.trunc(sigma * total), sigma, strict=True)]
    return Nodes(list(pairwise(grid)), abar, c)


def edm_nodes(c: Config, steps: int, *, own_end: bool = False) -> Nodes:
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
    return Nodes(list(zip(grid, [*grid[1:], end], strict=True)), np.empty(0), c)


def sine_nodes(c: Config, steps: int) -> Nodes:
    """The grid of improved PNDM, as its scheduler defines it: t from 1 to 0, sigma = sin(t pi / 2) ** 2."""
    t = np.linspace(1, 0, steps + 1)
    sigma = np.sin(t * np.pi / 2) ** 2
    alpha = np.sqrt(1 - sigma**2)
    t = np.arctan2(sigma, alpha) / np.pi * 2
    grid = [Node(*map(float, node)) for node in zip(t, alpha, sigma, strict=True)]
    return Nodes(list(pairwise(grid)), np.empty(0), c)


def beta_quantile(p: Floats, a: float = 0.6) -> Floats:
    """The inverse of the regularised incomplete beta function I_x(a, a): where a share p of beta(a, a) lies below."""
    total = math.gamma(a) ** 2 / math.gamma(2 * a)
    half = np.minimum(p, 1 - p)
    x = (half * a * total) ** (1 / a)  # its first term

    def below(x: Floats) -> Floats:  # DLMF 8.17.8, as a series for x <= 1 / 2
        term = x**a / a
        out = term.copy()
        for k in range(1, 80):
            term = term * x * (k - a) / k * (a + k - 1) / (a + k)
            out += term
        return out

    for _ in range(8):  # Newton, from below
        with np.errstate(divide="ignore", invalid="ignore"):
            x = np.where(half > 0, x + (half * total - below(x)) / (x * (1 - x)) ** (a - 1), 0.0)
    return np.where(p <= 0.5, x, 1 - x)
