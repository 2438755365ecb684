"""A plan run by the folded step (`unet/step.onnx`): one call a row, and the state stays where the network runs.

The loop in `sampler.py` says what it computes; here it is only asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import LdmrtError
from .guidance import Guidance
from .request import Request
from .sampler import Latents, Noise, Plan, State

STEP = "step"  # its name among the engines
FEEDBACK = {"new_state": "state", "new_row": "row"}


class Binding(Protocol):
    """An engine's inputs and outputs of one set of shapes, kept where it runs."""

    def upload(self, **arrays: NDArray[Any]) -> None: ...

    def launch(self) -> None: ...

    def download(self, *names: str) -> dict[str, NDArray[Any]]: ...


class Bindable(Protocol):
    """An engine whose outputs can be fed back as inputs."""

    def bind(self, shapes: Mapping[str, tuple[int, ...]], feedback: Mapping[str, str]) -> Binding: ...


@dataclass(frozen=True)
class Folded:
    """The step, and what of its inputs does not change between the rows of a request."""

    engine: Bindable
    guidance: Guidance
    told: Mapping[str, NDArray[Any]] = field(repr=False)  # of the network: contexts and their like, one a call

    def steps(self, plan: Plan, x: Latents, noise: Noise | None, init: Latents | None = None) -> Iterator[State]:
        """What `sampler.steps` yields."""
        binding = self._start(plan, x, noise, init)
        x = x if init is None else plan.noised(init, x)
        for row, (kx, km) in enumerate(plan.read.astype(np.float32)):
            binding.launch()
            found = binding.download("new_state", "said")
            seen = partial(_weighted, kx, x, km, found["said"])
            x = found["new_state"][:, 0]
            yield State(row, plan.rows, x, seen)

    def sample(self, plan: Plan, x: Latents, noise: Noise | None, init: Latents | None = None) -> Latents:
        """The latents after the last row; nothing comes to the host before."""
        binding = self._start(plan, x, noise, init)
        for _ in range(plan.rows):
            binding.launch()
        return binding.download("new_state")["new_state"][:, 0]

    def _start(self, plan: Plan, x: Latents, noise: Noise | None, init: Latents | None) -> Binding:
        first = x if init is None else plan.noised(init, x)
        arrays = {**state([plan] * len(x), first, noise), **tables([plan] * len(x)), **self.told}
        arrays |= {"idx": self.guidance.idx, "weights": self.guidance.weights}
        binding = self.engine.bind({name: array.shape for name, array in arrays.items()}, FEEDBACK)
        binding.upload(**arrays)
        return binding


def _weighted(kx: np.float32, x: Latents, km: np.float32, m: Latents) -> Latents:
    return kx * x + km * m


def foldable(plan: Plan, request: Request, guidance: Guidance) -> bool:
    """Whether all between two calls of the network is linear, and the same network is called at every row."""
    moving = bool(request.controls) or request.guidance_interval is not None or request.full_every > 1
    return not (plan.hooked or plan.learned or guidance.rescale or moving)


def tables(plans: Sequence[Plan]) -> dict[str, NDArray[np.float32]]:
    """Plans without hooks, one a picture, as the step takes them. Shorter ones stand still after their last row."""
    rows, saved = (max(plan.table.shape[axis] for plan in plans) for axis in (0, 1))
    table = np.zeros((len(plans), rows, saved, saved + 2), np.float32)
    timesteps = np.zeros((len(plans), rows), np.float32)
    for one, times, plan in zip(table, timesteps, plans, strict=True):
        own = plan.table.shape[1]
        one[: plan.rows, :own, : own + 1] = plan.folded[:, :, :-1]
        one[: plan.rows, :own, -1] = plan.folded[:, :, -1]
        one[plan.rows :, 0, 1] = 1.0
        times[: plan.rows], times[plan.rows :] = plan.t, plan.t[-1]
    return {"table": table, "timesteps": timesteps}


def state(plans: Sequence[Plan], x: Latents, noise: Noise | None) -> dict[str, NDArray[Any]]:
    """First latents (B, C, h, w), the row numbers, and the noise of all rows: of one where no plan draws any."""
    saved = max(plan.table.shape[1] for plan in plans)
    kept = np.zeros((len(x), saved, *x.shape[1:]), np.float32)
    kept[:, 0] = x
    rows = max(plan.rows for plan in plans)
    drawing = [row for row in range(rows) if any(row < plan.rows and plan.draws(row) for plan in plans)]
    drawn = np.zeros((len(x), rows if drawing else 1, *x.shape[1:]), np.float32)
    for row in drawing:
        if noise is None:
            raise LdmrtError("sampler", "this plan draws noise", expected="noise(row)", found=None)
        drawn[:, row] = noise(row)
    return {"state": kept, "row": np.zeros(len(x), np.int64), "noise": drawn}
