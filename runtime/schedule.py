"""Noise schedules and the grid of timesteps that a scheduler_config.json asks for. All in float64."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import LdmrtError

Floats = NDArray[np.float64]
SPACINGS = ("leading", "linspace", "trailing")


@dataclass(frozen=True)
class Nodes:
    """Where to evaluate the network, and where each step leads: x = alpha * x0 + sigma * eps at model time t.

    Five arrays of the same length, one entry a step. `to_alpha`, `to_sigma` are mostly the next entry's `alpha`,
    `sigma`; DDIM subtracts a fixed stride of timesteps and may land beside the grid.
    """

    t: Floats
    alpha: Floats
    sigma: Floats
    to_alpha: Floats
    to_sigma: Floats

    def __getitem__(self, rows: slice) -> "Nodes":
        """A part of the grid: img2img slices the nodes before it solves, never the plan."""
        return Nodes(*(getattr(self, name)[rows] for name in ("t", "alpha", "sigma", "to_alpha", "to_sigma")))

    def __len__(self) -> int:
        return len(self.t)


def betas(config: Mapping[str, Any]) -> Floats:
    """beta_1 .. beta_T of the forward process, (T,)."""
    steps = int(config.get("num_train_timesteps", 1000))
    first, last = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    kind = config.get("beta_schedule", "linear")
    if kind == "linear":  # Ho et al. 2020
        return np.linspace(first, last, steps)
    if kind == "scaled_linear":  # Rombach et al. 2022
        return np.square(np.linspace(first**0.5, last**0.5, steps))
    if kind == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, equation 17
        edges = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1.0 - edges[1:] / edges[:-1], 0.999)
    raise LdmrtError("scheduler", f"no beta_schedule {kind!r}", expected="linear, scaled_linear or squaredcos_cap_v2")


def alphas_cumprod(config: Mapping[str, Any]) -> Floats:
    """alpha_bar_t, the share of signal power after t + 1 steps of noising, (T,)."""
    return np.cumprod(1.0 - betas(config), dtype=np.float64)


def _spaced(config: Mapping[str, Any], steps: int, default: str, *, extra: int) -> Floats:
    """Descending timesteps as diffusers spaces them, (steps,). `extra` is 1 for solvers that drop the last of N + 1."""
    total = int(config.get("num_train_timesteps", 1000))
    spacing = config.get("timestep_spacing", default)
    if not 1 <= steps <= total:
        raise LdmrtError("scheduler", "impossible number of steps", expected=f"1 to {total}", found=steps)
    if spacing == "linspace":
        return np.linspace(0, total - 1, steps + extra, dtype=np.float64)[::-1][:steps]
    if spacing == "leading":
        stride = total // (steps + extra)
        grid: Floats = np.arange(steps + extra, dtype=np.float64) * stride
        return grid[::-1][:steps] + float(config.get("steps_offset", 0))
    if spacing == "trailing":
        return np.round(np.arange(total, 0, -total / steps))[:steps] - 1.0
    raise LdmrtError("scheduler", f"no timestep_spacing {spacing!r}", expected=", ".join(SPACINGS))


def whole_nodes(config: Mapping[str, Any], steps: int, *, strided: bool) -> Nodes:
    """The grid of DDIM and DDPM: whole timesteps. DDIM's step leads a fixed stride down, which may lie beside the
    grid (`strided`); DDPM's leads to the next timestep.
    """
    abar = alphas_cumprod(config)
    t = np.round(_spaced(config, steps, "leading", extra=0)).astype(int)
    if t.max() >= len(abar):
        raise LdmrtError("scheduler", "the grid leaves the schedule", expected="fewer steps", found=steps)
    before = t - len(abar) // steps if strided else np.append(t[1:], -1)
    final = abar[0] if strided and not config.get("set_alpha_to_one", True) else 1.0
    here, there = abar[t], np.where(before >= 0, abar[before.clip(0)], final)
    return Nodes(t.astype(float), np.sqrt(here), np.sqrt(1 - here), np.sqrt(there), np.sqrt(1 - there))


def sigma_nodes(config: Mapping[str, Any], steps: int, *, extra: int, rounded: bool) -> Nodes:
    """The grid of Euler and DPM-Solver: noise levels interpolated at the timesteps, then the final level.

    The levels sigma / alpha are those of a model whose input is scaled (Karras et al. 2022); here x stays in the
    model's own space, so each is split into alpha = 1 / sqrt(1 + level ** 2) and sigma = level * alpha.
    """
    abar = alphas_cumprod(config)
    t = _spaced(config, steps, "linspace", extra=extra)
    t = np.round(t) if rounded else t
    levels = np.sqrt((1 - abar) / abar)
    final = {"zero": 0.0, "sigma_min": levels[0]}.get(config.get("final_sigmas_type", "zero"))
    if final is None:
        raise LdmrtError(
            "scheduler", f"no final_sigmas_type {config['final_sigmas_type']!r}", expected="zero or sigma_min"
        )
    level = np.append(np.interp(t, np.arange(len(abar)), levels), final)
    alpha = 1 / np.sqrt(1 + level**2)
    sigma = level * alpha
    return Nodes(t, alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
