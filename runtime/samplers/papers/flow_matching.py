"""Rectified flow (Liu et al. 2022, arXiv:2209.03003) as Stable Diffusion 3 walks it: grid and rows.

x = (1 - sigma) x0 + sigma eps, and the network predicts m = eps - x0 at time sigma T: x is a straight line in sigma
whose slope is m. The first latents are noise alone.
"""

import math
from collections.abc import Iterator

import numpy as np

from ldmrt.runtime.errors import InvalidRequest, LdmrtError
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.samplers.config import KEYS, Config, resolve
from ldmrt.runtime.samplers.grid import Grid, Node
from ldmrt.runtime.samplers.schedule import Floats, respaced, spacing_of
from ldmrt.runtime.samplers.solvers import Row, symbols

EULER, HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
CLASSES = (EULER, HEUN)
ROUNDING = 1e-12  # by which a level that is computed as 1 may be above it
# What a class does with the levels of a flow, which another class has to do as well to run it.
LEVELS = ("shift_terminal", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def shifted(sigma: Floats, shift: float) -> Floats:
    """Shift noise levels toward noise, as larger images need it (Esser et al. 2024, arXiv:2403.03206, equation 23)."""
    out: Floats = shift * sigma / (1 + (shift - 1) * sigma)
    return out


def shift_of(c: Config, tokens: int | None) -> float:
    """Return the shift of a config's noise levels, where dynamic that of an image of so many tokens.

    diffusers computes mu, linear in the tokens, in its pipelines, and shifts by e^mu, or linearly by mu itself.

    Raises:
        LdmrtError: The shift is dynamic, and the tokens are unknown; or the config's numbers give no shift.
    """
    if not c.get("use_dynamic_shifting"):
        return float(c["shift"])
    if tokens is None:
        problem, expected = "use_dynamic_shifting asks for the size of the image", "a number of tokens"
        raise LdmrtError("scheduler", problem, expected=expected)
    try:
        slope = (c["max_shift"] - c["base_shift"]) / (c["max_image_seq_len"] - c["base_image_seq_len"])
        mu = c["base_shift"] + slope * (tokens - c["base_image_seq_len"])
        shift = math.exp(mu) if c["time_shift_type"] == "exponential" else float(mu)
    except ArithmeticError:
        shift = math.inf
    if not 0 < shift < math.inf:
        problem, expected = "the config has no shift for an image of this size", "a finite one above 0"
        raise LdmrtError("scheduler", problem, expected=expected, found=f"{tokens} tokens")
    return shift


def flow_grid(c: Config, steps: int) -> Grid:
    """Make the grid from pure noise to the least level, shifted, stretched and respaced as the config asks.

    The least level is that of training, which diffusers shifts twice where the shift is not dynamic: once for training,
    and once for the grid. A `trailing` grid ends one step before the image, as diffusers' pipelines of FLUX.1 ask.

    Raises:
        ArithmeticError: The levels do not descend.
    """
    shift, least = shift_of(c, c.get("tokens")), np.array(1 / c["num_train_timesteps"])
    low = least if c.get("use_dynamic_shifting") else shifted(least, shift)
    sigma = shifted(np.linspace(1, 1 / steps if c.get("trailing") else low, steps), shift)
    if c.get("shift_terminal"):  # the least level that there is to be
        sigma = 1 - (1 - sigma) * (1 - c["shift_terminal"]) / (1 - sigma[-1])
    if spacing := spacing_of(c):
        sigma = respaced(c, spacing, steps, sigma, sigma)
    if not (np.diff([1.0 + ROUNDING, *sigma, 0.0]) < 0).all():
        raise FloatingPointError("the levels do not descend")
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

    Raises:
        InvalidRequest: The levels of the config are more than the class can be told.
        LdmrtError: The config is invalid.
    """
    own = str(config.get("_class_name"))
    if own not in KEYS or own == class_name or not is_flow(config) or not {own, class_name} & {*CLASSES}:
        return config
    c = resolve(config, own)
    for key in LEVELS:
        if c.get(key) and (key not in KEYS[class_name] or key == "shift_terminal"):
            problem, found = f"{class_name} has no {key}", f"{c[key]} in the config"
            raise InvalidRequest("scheduler", problem, expected="a sampler of the config's own class", found=found)
    shift = shift_of(c, tokens) if own in CLASSES else c["flow_shift"]
    if class_name in CLASSES:
        return {**config, "shift": shift, "use_dynamic_shifting": False}
    named: JsonObject = {"use_flow_sigmas": True, "flow_shift": shift, "prediction_type": "flow_prediction"}
    return {**config, **named, "use_dynamic_shifting": False}


def is_flow(config: Config) -> bool:
    """Tell whether the network that a scheduler config came with solves a flow."""
    return config.get("_class_name") in CLASSES or bool(config.get("use_flow_sigmas"))


def skipped(config: Config, class_name: str, count: int, strength: float) -> int:
    """Return how many of `count` steps img2img leaves out.

    diffusers' pipelines of flows round the steps that are left up, other pipelines down, whatever the scheduler: the
    class that the config names tells which, or that it is run by where it names none.
    """
    own = config.get("_class_name", class_name)
    return int(count - count * strength) if own in CLASSES else count - max(1, int(count * strength))
