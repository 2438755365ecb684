"""Noise schedules: betas, noise levels and their spacing, as a scheduler_config.json asks for. All in float64."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.nearest import suggestion

from .config import Config

Floats = NDArray[np.float64]
ZERO_SNR = 2.0**-24  # what diffusers puts for a signal of zero where it must divide by it
BETAS, SPACED = ("linear", "scaled_linear", "squaredcos_cap_v2"), ("leading", "linspace", "trailing")
RHO = 7.0  # of Karras et al. 2022, table 1


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


def karras(high: float, low: float, ramp: Floats, rho: float = RHO) -> Floats:
    """Karras et al. 2022, equation 5, at `ramp` between 0 and 1."""
    out: Floats = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return out


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
