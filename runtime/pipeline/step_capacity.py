"""How much of a sampler the folded step's inputs hold: an engine that was built for many rows runs plans of few."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the options of commands come from here, and load no NumPy
    from ldmrt.runtime.samplers.plan import Plan
    from ldmrt.runtime.tensors import Shape, Shapes

STEPS = 50  # that an engine takes, of any sampler, where nobody says how many
SPARE = ("rows", "saved", "terms")  # of these dimensions an engine may be bound for more than a plan needs


def most_rows(steps: int) -> int:
    """Of a plan of so many steps, of any sampler: Heun and its like call the network twice in each but the last, and
    PNDM's Runge-Kutta steps come to nine calls more than steps.
    """
    return 2 * steps + 8


def steps_of(rows: int) -> int:
    """A round number of steps whose `most_rows` are these at least: engines are not built for every number."""
    return next(steps for steps in count(STEPS, STEPS) if most_rows(steps) >= rows)


@dataclass(frozen=True)
class Room:
    """Says how many rows, saved latents and noise draws a folded step was built for."""

    rows: int
    saved: int  # latents, with the current ones
    draws: int  # of noise: one that nobody looks at, or one a row

    @classmethod
    def of(cls, plans: "Sequence[Plan]") -> "Room":
        """Return the room that plans need."""
        rows, saved = (max(plan.table.shape[axis] for plan in plans) for axis in (0, 1))
        return cls(rows, saved, rows if any(map(_drawing, plans)) else 1)

    @classmethod
    def read(cls, shapes: "Shapes") -> "Room":
        """Read the room from shapes: the inverse of `shapes`."""
        return cls(shapes["table"][1], shapes["table"][2], shapes["noise"][1])

    def shapes(self, x: "Shape", calls: int) -> "dict[str, Shape]":
        """Return the shapes of the inputs that a sampler fills, for first latents of shape `x` (B, C, h, w)."""
        batch, *latent = x
        return {
            "state": (batch, self.saved, *latent),
            "row": (batch,),
            "timesteps": (batch, self.rows),
            "table": (batch, self.rows, self.saved, self.saved + 2),
            "noise": (batch, self.draws, *latent),
            "idx": (calls,),
            "weights": (batch, calls),
        }


def _drawing(plan: "Plan") -> bool:
    return any(map(plan.draws, range(plan.rows)))
