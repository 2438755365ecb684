"""One model stops, and another goes on: `denoising_end` and `denoising_start`, as diffusers' SDXL pipelines count.

Both are shares of the training's timesteps. The first model runs the rows whose timestep is at or above the one they
stand for, the second one the rows below.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ldmrt.runtime.errors import InvalidRequest

from .grid import Node
from .plan import Plan


@dataclass(frozen=True)
class Entry:
    """Holds the place where a plan begins that goes on with another model's latents."""

    row: int  # the first row, counted in the plan from pure noise
    scale: float  # factor of the latents: they were left at one noise level and may be read at another


def timestep(share: float, total: int) -> int:
    """Return the timestep that a share of the schedule of `total` timesteps stands for."""
    return round(total - share * total)


def entry(grid: Sequence[Node], calls: int, limit: int) -> Entry:
    """Find where a plan goes on below a timestep.

    Steps of two `calls` of the network are not begun in their middle: where the limit falls there, diffusers begins
    with the step's first call, and takes the latents of the middle, unscaled, for those of its beginning.

    Args:
        grid: The nodes of all rows from pure noise.
        calls: Evaluations of the network in a step, 1 or 2.
        limit: The timestep at which the other model stopped.

    Raises:
        InvalidRequest: No row is left.
    """
    below = int((np.array([node.t for node in grid], np.float32) < limit).sum())
    left, count = len(grid) - below, below
    if calls == 2 and count % 2 == 0:
        count = min(count + 1, len(grid))
    if not count:
        raise InvalidRequest("scheduler", "denoising_start leaves no step", expected="an earlier start, or more steps")
    first = grid[len(grid) - count]
    return Entry(len(grid) - count, first.alpha / (grid[left].alpha if below else 1.0))


def until(plan: Plan, limit: int, *, unscaled: bool) -> Plan:
    """Cut a plan after the rows whose timestep is at or above a limit.

    Inpainting leaves the part that it keeps without noise. Where diffusers' latents are `unscaled`, x / alpha, it puts
    the clean latents of an image there, which are alpha times as large in the model's own space.

    Raises:
        InvalidRequest: No row is at or above the limit.
    """
    count = int((plan.t.astype(np.float32) >= limit).sum())
    if not count:
        raise InvalidRequest("scheduler", "denoising_end leaves no step", expected="a later end, or more steps")
    rows = {name: getattr(plan, name)[:count] for name in ("t", "alpha", "sigma", "read", "table")}
    end_alpha = float(plan.alpha[count]) if unscaled and count < plan.rows else plan.end_alpha
    return replace(plan, **rows, end_alpha=end_alpha, spread=None if plan.spread is None else plan.spread[:count])
