"""A request on its way through the pipeline: after the encoders, made ready for the rows, after the last row."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.samplers.guidance import Guidance
from ldmrt.runtime.samplers.loop import Blend, Model, Noise, State, steps
from ldmrt.runtime.samplers.plan import Latents, Plan

from .fused_step import FusedStep
from .initial_latents import InitialLatents
from .request import Request

FINITE_HINT = "ldmrt verify BUNDLE --against CHECKPOINT"


@dataclass(frozen=True)
class DenoisingTask:
    """A request made ready: what `runtime.steps` takes, in place. `model(x, t)` is the guided network."""

    plan: Plan
    x: Latents = field(repr=False)
    model: Model
    noise: Noise
    init: Latents | None = field(repr=False)
    blend: Blend | None
    folded: FusedStep | None = None  # where it can be run so: a call a row, of which nothing need come to the host

    def steps(self) -> Iterator[State]:
        """Run it, and stop after every row."""
        if self.folded is not None:
            return self.folded.steps(self.plan, self.x, self.noise, self.init)
        return steps(self.plan, self.x, self.model, self.noise, self.init, blend=self.blend, in_place=True)

    def last(self, go_on: Callable[[], bool] = lambda: True) -> Latents:
        """Run it to the latents after the last row; an `LdmrtError` names the row where they are not finite. The loop
        asks after each row whether it shall `go_on`.
        """
        if self.folded is not None:
            x = self.folded.sample(self.plan, self.x, self.noise, self.init)
            if np.isfinite(x).all():
                return x
        for state in check_finite(self.steps()):
            x = state.x
            if not go_on():
                break
        return x


def check_finite(states: Iterator[State]) -> Iterator[State]:
    """Yield states, and refuse the first that is not finite."""
    for state in states:
        if not np.isfinite(state.x).all():
            raise LdmrtError("unet", f"latents are not finite after row {state.row}", hint=FINITE_HINT)
        yield state


@dataclass(frozen=True)
class Encoded:
    """Holds a request after the encoders."""

    request: Request
    plan: Plan
    initial: InitialLatents
    guidance: Guidance
    conditioning: Mapping[str, NDArray[Any]]  # the U-Net's inputs that do not change from row to row
    seconds: float


@dataclass(frozen=True)
class Denoised:
    """A request after the last row."""

    x: Latents
    seeds: list[int]
    seconds: float
