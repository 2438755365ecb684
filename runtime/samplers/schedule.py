"""Noise schedules: betas, noise levels and their spacing, as a scheduler_config.json asks for. All in float64."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import InvalidRequest, LdmrtError
from ldmrt.runtime.nearest import suggestion

from .config import Config, resolve

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
_Float = TypeVar("_Float", np.float32, np.float64)
ZERO_SNR = 2.0**-24  # what diffusers puts for a signal of zero where it must divide by it
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")
# Spacings of noise levels: "use_" and one of these is a key of a config.
LEVEL_SPACINGS = ("karras_sigmas", "lu_lambdas", "exponential_sigmas", "beta_sigmas", "flow_sigmas")
NOISERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")  # add noise of `alphas_cumprod`
RHO = 7.0  # of Karras et al. 2022, table 1


def split(level: float) -> tuple[float, float]:
    """Split a noise level sigma / alpha into (alpha, sigma) with alpha**2 + sigma**2 = 1."""
    alpha = 1 / math.sqrt(1 + level**2)
    return alpha, level * alpha


def levels(abar: NDArray[_Float]) -> NDArray[_Float]:
    """Compute the noise level sigma / alpha of each training timestep, (T,), from alpha_bar, (T,)."""
    out: NDArray[_Float] = np.sqrt((1 - abar) / abar)
    return out


def times(level: Floats, abar: NDArray[_Float]) -> Floats:
    """Find the training timesteps of noise levels, interpolated in the logarithm of the levels.

    Args:
        level: Noise levels sigma / alpha, (n,).
        abar: alpha_bar of the training timesteps, (T,).

    Returns:
        Timesteps from 0 to T - 1, (n,), mostly not whole.
    """
    return np.interp(np.log(np.maximum(level, 1e-10)), np.log(levels(abar)), np.arange(len(abar)))


def betas(c: Config, line: Callable[[float, float, int], Floats] = np.linspace) -> Floats:
    """Compute beta_1 .. beta_T of the forward process, (T,).

    Args:
        c: The config of a scheduler, with every key of its class.
        line: Evenly spaced numbers, `line(first, last, count)`; another one rounds as torch does.

    Raises:
        LdmrtError: The config names an unknown `beta_schedule`.
    """
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
    if kind == "sigmoid":  # Xu et al. 2022, arXiv:2203.02923; in diffusers of `DDPMScheduler` alone
        out: Floats = first + (last - first) / (1.0 + np.exp(-line(-6.0, 6.0, count)))
        return out
    problem = f"no beta_schedule {kind!r}{suggestion(kind, BETAS)}"
    raise LdmrtError("scheduler", problem, expected=f"{', '.join(BETAS[:-1])} or {BETAS[-1]}")


def alphas_cumprod(c: Config, *, zero: float = 0.0) -> Floats:
    """Compute alpha_bar_t, the share of signal power after t + 1 steps of noising, (T,).

    With `rescale_betas_zero_snr` (Lin et al. 2023, algorithm 1) the last one is `zero`.
    """
    abar: Floats = np.cumprod(1.0 - betas(c), dtype=np.float64)
    if c.get("rescale_betas_zero_snr"):
        root = np.sqrt(abar)
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        abar[-1] = zero
    return abar


def linspace32(first: float, last: float, count: int) -> Floats:
    """Space numbers evenly with the roundings of torch.linspace in float32, which counts from both ends, (count,)."""
    low, high, i = np.float32(first), np.float32(last), np.arange(count)
    stride = float((high - low) / np.float32(max(count - 1, 1)))
    out: Floats = np.where(i < max(count // 2, 1), low + stride * i, high - stride * (count - 1 - i)).astype(np.float32)
    return out


def float32_cumprod(c: Config) -> Floats32:
    """Compute `alphas_cumprod` with the roundings of torch in float32, (T,).

    They decide whether a level's timestep is 999 or 998.9999, which is truncated to 998.
    """
    if c.get("rescale_betas_zero_snr"):
        return alphas_cumprod(c, zero=ZERO_SNR).astype(np.float32)
    return np.cumprod(1 - betas(c, linspace32).astype(np.float32), dtype=np.float64).astype(np.float32)


def signal_and_noise(config: Config, timestep: int) -> tuple[float, float]:
    """Return alpha and sigma of a training timestep, with which noise is added to an image that a network is given.

    The noised image is alpha * image + sigma * noise (Ho et al. 2021, arXiv:2106.15282).

    Args:
        config: A diffusers scheduler config, of a class that adds noise of `alphas_cumprod`.
        timestep: 0 to `num_train_timesteps` - 1.

    Raises:
        InvalidRequest: The timestep is out of range.
        LdmrtError: The config is invalid, or of a class that adds noise in another way.
    """
    if (name := config.get("_class_name")) not in NOISERS:
        problem = f"unsupported {name} to add noise to an image"
        raise LdmrtError("scheduler", problem, expected=" or ".join(NOISERS))
    abar = alphas_cumprod(resolve(config, str(name)))
    if not 0 <= timestep < len(abar):
        raise InvalidRequest("scheduler", "invalid noise level", expected=f"0 to {len(abar) - 1}", found=timestep)
    return float(np.sqrt(abar[timestep])), float(np.sqrt(1 - abar[timestep]))


class TrainedLevels:
    """Holds the noise levels that a network was trained on, exact and with the roundings of torch in float32.

    Attributes:
        abar: alpha_bar of the training timesteps, (T,).
        level: Noise levels sigma / alpha of the training timesteps, (T,), ascending.
    """

    def __init__(self, c: Config) -> None:
        """Compute them from the config of a scheduler."""
        self._config, self.abar = c, alphas_cumprod(c, zero=ZERO_SNR)
        self.level = levels(self.abar)

    @cached_property
    def abar32(self) -> Floats32:
        """alpha_bar of the training timesteps, (T,), rounded as torch rounds it."""
        return float32_cumprod(self._config)

    @cached_property
    def level32(self) -> Floats32:
        """Noise levels of `abar32`, (T,), ascending."""
        return levels(self.abar32)


def spaced(c: Config, steps: int, *, extra: int = 0) -> Floats:
    """Space timesteps as diffusers does, (steps,), descending.

    Args:
        c: The config of a scheduler; `timestep_spacing` is leading, linspace or trailing (Lin et al. 2023, table 2).
        steps: How many timesteps.
        extra: 1 for solvers that drop the last of N + 1 timesteps.

    Raises:
        InvalidRequest: There are more steps than training timesteps.
        LdmrtError: The spacing is unknown.
    """
    total = c["num_train_timesteps"]
    spacing, last = c.get("timestep_spacing", "linspace"), total
    if steps + extra > total:
        raise InvalidRequest("scheduler", "invalid number of steps", expected=f"1 to {total - extra}", found=steps)
    if c.get("lambda_min_clipped", -math.inf) > -math.inf:
        last -= int(np.searchsorted(-np.log(levels(alphas_cumprod(c, zero=ZERO_SNR)))[::-1], c["lambda_min_clipped"]))
    if spacing == "linspace":
        return np.linspace(0, last - 1, steps + extra, dtype=np.float64)[::-1][:steps]
    if spacing == "leading":
        ascending: Floats = np.arange(steps + extra, dtype=np.float64) * (last // (steps + extra))
        return ascending[::-1][:steps] + float(c["steps_offset"])
    if spacing == "trailing":
        descending: Floats = np.arange(last, 0, -total / steps)[:steps].round() - 1.0
        return descending
    problem = f"no timestep_spacing {spacing!r}{suggestion(spacing, TIMESTEP_SPACINGS)}"
    raise LdmrtError("scheduler", problem, expected="leading, linspace or trailing")


def spacing_of(c: Config) -> str:
    """Return the spacing of the noise levels that a config asks for, one of `LEVEL_SPACINGS`; "" for none."""
    spacings = [spacing for spacing in LEVEL_SPACINGS if c.get(f"use_{spacing}")]
    if len(spacings) > 1:
        raise LdmrtError("scheduler", "two spacings of the noise levels", expected="one", found=", ".join(spacings))
    return spacings[0] if spacings else ""


def respaced(c: Config, spacing: str, steps: int, between: Floats | Floats32, train: Floats | Floats32) -> Floats:
    """Space noise levels from the first of `between` to its last, or from `sigma_max` to `sigma_min`, (steps,)."""
    high, low = float(c.get("sigma_max") or between[0]), float(c.get("sigma_min") or between[-1])
    if spacing == "beta_sigmas":  # Lee et al. 2024
        return low + beta_quantile(1 - np.linspace(0, 1, steps)) * (high - low)
    if spacing == "lu_lambdas":  # Lu et al. 2022; of exactly the logarithms that `times` compares with
        logs = np.log(train)
        return np.exp(np.linspace(float(logs[-1]), float(logs[0]), steps))
    return karras(high, low, np.linspace(0, 1, steps)) if spacing == "karras_sigmas" else np.geomspace(high, low, steps)


def last_level(c: Config, least: float) -> float:
    """Return the noise level that the last step leads to: 0, or `least`, as `final_sigmas_type` says."""
    ends, end = {"zero": 0.0, "sigma_min": least}, c["final_sigmas_type"]
    if end not in ends:
        problem = f"no final_sigmas_type {end!r}{suggestion(end, ends)}"
        raise LdmrtError("scheduler", problem, expected=" or ".join(ends))
    return ends[end]


def karras(high: float, low: float, ramp: Floats, rho: float = RHO) -> Floats:
    """Space noise levels as Karras et al. 2022, equation 5.

    Args:
        high: The level at ramp 0.
        low: The level at ramp 1.
        ramp: Places between 0 and 1, (n,).
        rho: The root in which levels are evenly spaced.

    Returns:
        Noise levels, (n,).
    """
    out: Floats = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return out


def beta_quantile(p: Floats, a: float = 0.6) -> Floats:
    """Invert the regularised incomplete beta function I_x(a, a): a share p of beta(a, a) lies below x.

    Args:
        p: Shares from 0 to 1, (n,).
        a: Both shape parameters of the distribution.

    Returns:
        The quantiles x, (n,), from 0 to 1.
    """
    total = math.gamma(a) ** 2 / math.gamma(2 * a)
    half = np.minimum(p, 1 - p)
    x = (half * a * total) ** (1 / a)  # its first term

    def below(x: Floats) -> Floats:  # DLMF 8.17.8, as a series for x <= 1 / 2
        term = x**a / a
        out: Floats = term.copy()
        for k in range(1, 80):
            term = term * x * (k - a) / k * (a + k - 1) / (a + k)
            out += term
        return out

    for _ in range(8):  # Newton, from below
        with np.errstate(divide="ignore", invalid="ignore"):
            x = np.where(half > 0, x + (half * total - below(x)) / (x * (1 - x)) ** (a - 1), 0.0)
    return np.where(p <= 0.5, x, 1 - x)
