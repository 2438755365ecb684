"""Rectified flow (Liu et al. 2022, arXiv:2209.03003) as Stable Diffusion 3 and Flux walk it: grid and rows.

x = (1 - sigma) x0 + sigma eps, and the network predicts m = eps - x0 at time sigma T: x is a straight line in sigma
whose slope is m. The first latents are noise alone.
"""

import math
from collections.abc import Iterator

import numpy as np

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.samplers.config import KEYS, Config
from ldmrt.runtime.samplers.grid import Grid, Node
from ldmrt.runtime.samplers.schedule import Floats, respaced, spacing_of
from ldmrt.runtime.samplers.solvers import Row, symbols

EULER, HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
CLASSES = (EULER, HEUN)


def shifted(sigma: Floats, shift: float) -> Floats:
    """Shift noise levels toward noise, as larger images need it (Esser et al. 2024, arXiv:2403.03206, equation 23)."""
    out: Floats = shift * sigma / (1 + (shift - 1) * sigma)
    return out


def shift_of(c: Config, tokens: int | None) -> float:
    """Return the shift of a config's noise levels, where dynamic that of an image of so many tokens.

    diffusers computes mu, linear in the tokens, in its pipelines, and shifts by e^mu, or linearly by mu itself.

    Raises:
        LdmrtError: The shift is dynamic, and the tokens are unknown.
    """
    if not c.get("use_dynamic_shifting"):
        return float(c["shift"])
    if tokens is None:
        problem, expected = "use_dynamic_shifting asks for the size of the image", "a number of tokens"
        raise LdmrtError("scheduler", problem, expected=expected)
    slope = (c["max_shift"] - c["base_shift"]) / (c["max_image_seq_len"] - c["base_image_seq_len"])
    mu = c["base_shift"] + slope * (tokens - c["base_image_seq_len"])
    return math.exp(mu) if c["time_shift_type"] == "exponential" else float(mu)


def flow_grid(c: Config, steps: int) -> Grid:
    """Make the grid from pure noise to the least level of training, shifted, stretched and respaced as the config asks.

    diffusers shifts the least level twice, where the shift is not dynamic: once for training, and once for the grid.
    """
    shift, least = shift_of(c, c.get("tokens")), np.array(1 / c["num_train_timesteps"])
    low = least if c.get("use_dynamic_shifting") else shifted(least, shift)
    sigma = shifted(np.linspace(1, low, steps), shift)
    if c.get("shift_terminal"):  # the least level that there is to be
        sigma = 1 - (1 - sigma) * (1 - c["shift_terminal"]) / (1 - sigma[-1])
    if spacing := spacing_of(c):
        sigma = respaced(c, spacing, steps, sigma, sigma)
    nodes = [Node(float(s * c["num_train_timesteps"]), float(1 - s), float(s)) for s in sigma]
    end = Node(0.0, 1.0, 0.0)
    return Grid(list(zip(nodes, [*nodes[1:], end], strict=True)), np.empty(0), c)


def flow_euler(grid: Grid) -> Iterator[Row]:
    """Follow the line by Euler's method; with `stochastic_sampling` go to the data and back along fresh noise."""
    x, m, z, x0 = symbols()
    for node, to in grid.walk():
        if grid.config["stochastic_sampling"]:
            yield node, [to.alpha * x0 + to.sigma * z]
        else:
            yield node, [x + (to.sigma - node.sigma) * m]


def flow_heun(grid: Grid) -> Iterator[Row]:
    """Take Euler's step, then the mean of both slopes; the last step is Euler's.

    Noise that is added first raises the level (Karras et al. 2022, algorithm 2); as in diffusers the slope is that of
    the level before.
    """
    x, slope, m, z, _ = symbols(1)
    c, rows = grid.config, 2 * len(grid) - 1
    for node, to in grid.walk():
        churned = c["s_tmin"] <= node.sigma <= c["s_tmax"]
        raised = node.sigma * (1 + (min(c["s_churn"] / rows, math.sqrt(2) - 1) if churned else 0.0))
        first, change = node.sigma / raised * m, to.sigma - raised
        yield node, [x + c["s_noise"] * math.sqrt(raised**2 - node.sigma**2) * z + change * first, first]
        if to.sigma:
            yield to, [x + change * (m - slope) / 2, 0 * x]


def for_solver(config: Config, class_name: str, tokens: int | None = None) -> Config:
    """Return a flow's config as another class takes it that solves flows: with its levels, prediction and shift.

    Args:
        config: The scheduler config that came with the network; that of another network is returned as it is.
        class_name: The class to run it by.
        tokens: Of the image, where the shift is dynamic.
    """
    own = str(config.get("_class_name"))
    if own not in CLASSES or "use_flow_sigmas" not in KEYS[class_name]:
        return config
    shift = shift_of({**KEYS[own], **config}, tokens)
    named: JsonObject = {"use_flow_sigmas": True, "flow_shift": shift, "prediction_type": "flow_prediction"}
    return {**config, **named, "use_dynamic_shifting": False, "shift_terminal": None}


def skipped(class_name: str, count: int, strength: float) -> int:
    """Return how many of `count` steps img2img leaves out; diffusers' pipelines of flows round the other way."""
    return int(count - count * strength) if class_name in CLASSES else count - max(1, int(count * strength))
