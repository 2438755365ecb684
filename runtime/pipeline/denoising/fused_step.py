"""Run a plan by the fused step (`unet/step.onnx`): one call a row, and the state stays where the network runs.

It computes the same as the loop in `samplers/loop.py`.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.bundle.graphs import FEEDBACK, SPARE
from ldmrt.runtime.errors import BundleError, LdmrtError, LdmrtWarning
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.guidance import Guidance
from ldmrt.runtime.samplers.loop import Noise, State
from ldmrt.runtime.samplers.plan import Latents, Plan
from ldmrt.runtime.tensors import BindableEngine, Binding, Shape, Shapes


@dataclass(frozen=True)
class StepCapacity:
    """Holds how many rows, saved latents and noise draws a fused step was built for."""

    rows: int
    saved_latents: int  # latents, with the current ones
    noise_draws: int  # one a row, or one in all that no row uses

    @classmethod
    def of(cls, plans: Sequence[Plan]) -> "StepCapacity":
        """Return the capacity that plans need."""
        rows, saved = (max(plan.table.shape[axis] for plan in plans) for axis in (0, 1))
        return cls(rows, saved, rows if any(map(_drawing, plans)) else 1)

    @classmethod
    def read(cls, shapes: Shapes) -> "StepCapacity":
        """Read the capacity from shapes: the inverse of `shapes`."""
        return cls(shapes["table"][1], shapes["table"][2], shapes["noise"][1])

    def shapes(self, x: Shape, calls: int) -> dict[str, Shape]:
        """Return the shapes of the inputs that a sampler fills, for first latents of shape `x` (B, C, h, w)."""
        batch, *latent = x
        return {
            "state": (batch, self.saved_latents, *latent),
            "row": (batch,),
            "timesteps": (batch, self.rows),
            "table": (batch, self.rows, self.saved_latents, self.saved_latents + 2),
            "noise": (batch, self.noise_draws, *latent),
            "idx": (calls,),
            "weights": (batch, calls),
        }


def _drawing(plan: "Plan") -> bool:
    return any(map(plan.draws, range(plan.rows)))


@dataclass(frozen=True)
class FusedStep:
    """The step, and what of its inputs does not change between the rows of a request."""

    engine: BindableEngine
    guidance: Guidance
    conditioning: Mapping[str, NDArray[Any]] = field(repr=False)  # of the network: contexts and their like, one a call

    def ready(self, plan: Plan, shape: Shape) -> bool:
        """Tell whether the engine takes this plan and first latents of this shape; else a warning says why not.

        Raises:
            BundleError: A file is damaged, or was replaced after the bundle was opened.
        """
        try:
            self._bind(plan, shape)
        except BundleError:
            raise
        except LdmrtError as error:
            warning = f"{error.where}: {error.problem}; the rows run one by one"
            warnings.warn(f"{warning}; next: {error.hint}" if error.hint else warning, LdmrtWarning, stacklevel=3)
            return False
        return True

    def steps(self, plan: Plan, x: Latents, noise: Noise | None, init: Latents | None = None) -> Iterator[State]:
        """Run a plan and yield the state after every row, as `sampler.steps` does."""
        binding, arrays = self._start(plan, x, noise, init)
        x, mine = arrays["state"][:, 0], object()
        for row, (kx, km) in enumerate(plan.read.astype(np.float32)):
            with binding.claim:
                if binding.owner is not mine:  # at first, and after another request of the same shapes
                    binding.upload(**arrays)
                    binding.owner = mine
                binding.launch()
                outputs = binding.download("new_state", "said")  # the latter is the prediction
            arrays |= {"state": outputs["new_state"], "row": arrays["row"] + 1}
            seen = partial(_weighted, kx, x, km, outputs["said"])
            x = outputs["new_state"][:, 0]
            yield State(row, plan.rows, x, seen)

    def sample(self, plan: Plan, x: Latents, noise: Noise | None, init: Latents | None = None) -> Latents:
        """The latents after the last row; nothing comes to the host before."""
        binding, arrays = self._start(plan, x, noise, init)
        with binding.claim:
            binding.upload(**arrays)
            binding.owner = None
            for _ in range(plan.rows):
                binding.launch()
            return binding.download("new_state")["new_state"][:, 0]

    def _bind(self, plan: Plan, shape: Shape) -> Binding:
        capacity = StepCapacity.of([plan])
        shapes = capacity.shapes(shape, len(self.guidance.idx)) | {
            name: one.shape for name, one in self.conditioning.items()
        }
        return self.engine.bind(shapes, FEEDBACK, SPARE if capacity.noise_draws == 1 else (*SPARE, "draws"))

    def _start(
        self, plan: Plan, x: Latents, noise: Noise | None, init: Latents | None
    ) -> tuple[Binding, dict[str, NDArray[Any]]]:
        first = x if init is None else plan.noised(init, x)
        binding = self._bind(plan, x.shape)
        capacity, plans = StepCapacity.read(binding.shapes), [plan] * len(x)
        arrays = {**state(plans, first, noise, capacity), **tables(plans, capacity), **self.conditioning}
        return binding, arrays | {"idx": self.guidance.idx, "weights": self.guidance.matrix}


def _weighted(kx: np.float32, x: Latents, km: np.float32, m: Latents) -> Latents:
    out: Latents = kx * x + km * m
    return out


def can_fuse(plan: Plan, request: Request, guidance: Guidance) -> bool:
    """Whether all between two calls of the network is linear, and the same network is called at every row."""
    by_row = request.guidance_interval is not None or request.skip_guidance_layers is not None
    moving = bool(request.controls) or by_row or request.full_every > 1
    return not (plan.hooked or plan.predicts_variance or guidance.rescale or guidance.most or moving)


def tables(plans: Sequence[Plan], capacity: StepCapacity) -> dict[str, NDArray[np.float32]]:
    """Plans without hooks, one an image, as the step takes them. Shorter ones stand still after their last row."""
    table = np.zeros((len(plans), capacity.rows, capacity.saved_latents, capacity.saved_latents + 2), np.float32)
    timesteps = np.zeros((len(plans), capacity.rows), np.float32)
    for one, times, plan in zip(table, timesteps, plans, strict=True):
        own = plan.table.shape[1]
        one[: plan.rows, :own, : own + 1] = plan.fused[:, :, :-1]
        one[: plan.rows, :own, -1] = plan.fused[:, :, -1]
        one[plan.rows :, 0, 1] = 1.0
        times[: plan.rows], times[plan.rows :] = plan.t, plan.t[-1]
    return {"table": table, "timesteps": timesteps}


def state(plans: Sequence[Plan], x: Latents, noise: Noise | None, capacity: StepCapacity) -> dict[str, NDArray[Any]]:
    """First latents (B, C, h, w), the row numbers, and the noise of all rows: of one where no plan draws any."""
    kept = np.zeros((len(x), capacity.saved_latents, *x.shape[1:]), np.float32)
    kept[:, 0] = x
    drawing = [row for row in range(capacity.rows) if any(row < plan.rows and plan.draws(row) for plan in plans)]
    drawn = np.zeros((len(x), capacity.noise_draws, *x.shape[1:]), np.float32)
    for row in drawing:
        if noise is None:
            raise LdmrtError("sampler", "this plan draws noise", expected="noise(row)", found=None)
        drawn[:, row] = noise(row)
    return {"state": kept, "row": np.zeros(len(x), np.int64), "noise": drawn}
