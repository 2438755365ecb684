"""Denoise a request: the guided network, the sampler's rows, and a request before and after them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import cast

import numpy as np

from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.bundle.graphs import PREDICTIONS, STATES, STEP, UNET, denoiser_of
from ldmrt.runtime.errors import InvalidRequest, NotFinite
from ldmrt.runtime.pipeline.conditioning.guided import GuidedInputs
from ldmrt.runtime.pipeline.conditioning.sources import BESIDE_STATE
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.guidance import Guidance, guided_rows, last_rows, skipping_rows
from ldmrt.runtime.samplers.loop import Blend, Model, Noise, State, steps
from ldmrt.runtime.samplers.noise.counter import of_stage
from ldmrt.runtime.samplers.noise.sources import NoiseSource
from ldmrt.runtime.samplers.plan import Latents, Plan
from ldmrt.runtime.tensors import Array, Arrays, BindableEngine

from .controls import Controls, open_controls
from .deep_cache import DeepCached, full_times
from .fused_step import FusedStep, can_fuse
from .initial_latents import InitialLatents
from .split_calls import Network, splitting

FINITE_HINT = "ldmrt verify BUNDLE --against CHECKPOINT"
StepEnd = Callable[[int, float, dict[str, Array]], "Mapping[str, Array] | None"]


@dataclass(frozen=True)
class Encoded:
    """Holds a request after the encoders.

    `inputs` are those of the U-Net beside the latents; `size` is the height and width of the images in pixels.
    """

    request: Request
    plan: Plan
    initial: InitialLatents
    size: tuple[int, int]
    inputs: GuidedInputs
    noise: NoiseSource
    seconds: float
    stage: int = 0  # its place in a cascade


@dataclass(frozen=True)
class Denoised:
    """Holds a request after the last row; `x` are its latents (N, C, h, w)."""

    request: Request
    x: Latents
    seconds: float


@dataclass(frozen=True)
class DenoisingTask:
    """A request made ready: the arguments of `runtime.steps`, whose latents are overwritten row by row."""

    plan: Plan
    x: Latents = field(repr=False)
    model: Model
    noise: Noise
    init: Latents | None = field(repr=False)
    blend: Blend | None
    network: str = UNET  # the component's name
    fused: FusedStep | None = None  # where a row can be one call, after which nothing has to come to the host

    @classmethod
    def of(cls, engines: LazyEngines, encoded: Encoded, step_end: StepEnd | None = None) -> "DenoisingTask":
        """Connect the U-Net, its controls and guidance with the plan of a request.

        Args:
            engines: Those of a pipeline.
            encoded: The request after the encoders.
            step_end: Called after each row with its number, its time and {"latents": (N, C, h, w)}.
        """
        request, plan, start, inputs = encoded.request, encoded.plan, encoded.initial, encoded.inputs
        guidance, every = inputs.guidance, request.full_every
        name = denoiser_of(engines)
        network: Network = engines[name] if every == 1 else DeepCached(engines, full_times(plan, every))

        @cache
        def guided_by(how: str, variant: int) -> Model:
            guidance: Guidance = getattr(inputs, how)
            last = last_rows(inputs.variants[variant], len(guidance.idx))
            split = splitting(None if inputs.tokens is None else inputs.tokens[-len(guidance.idx) :])
            controls = open_controls(engines, request.controls, encoded.size, guidance, last, split)
            return guided_network(split(network), guidance, last, controls, start.x.shape[1], name)

        how = ["usual"] * plan.rows
        if len(guidance.idx) > len(inputs.usual.idx):
            between = request.skip_layer_guidance_start, request.skip_layer_guidance_stop
            skips = skipping_rows(plan, request.num_inference_steps, *between)
            how = ["guidance" if skips[row] else each for row, each in enumerate(how)]
        if request.guidance_interval is not None and not guidance.plain:
            guided = guided_rows(plan, request.guidance_interval)
            how = [each if guided[row] else "alone" for row, each in enumerate(how)]
        models = [guided_by(each, variant) for each, variant in zip(how, inputs.of_row, strict=True)]
        model = models[0]
        if any(each is not model for each in models):
            model = ModelOfRow(plan.t.tolist(), models)

        def fresh(row: int, into: Latents | None = None) -> Latents:
            return encoded.noise(of_stage(plan.first + row + 1, encoded.stage), start.x.shape[1:], into)

        x = start.x if start.init is not None else start.x * np.float32(plan.prior_scale)
        blend = start.blend if step_end is None else partial(_end_step, step_end, plan, start.blend)
        fused = None
        constant = len(inputs.variants) == 1 and inputs.tokens is None
        if STEP in engines and can_fuse(plan, request, guidance) and constant and blend is None:
            step = FusedStep(cast(BindableEngine, engines[STEP]), guidance, inputs.variants[0])
            fused = step if step.ready(plan, x.shape) else None
        return cls(plan, x, model, fresh, start.init, blend, name, fused)

    def steps(self) -> Iterator[State]:
        """Yield the state after every row."""
        if self.fused is not None:
            return self.fused.steps(self.plan, self.x, self.noise, self.init)
        return steps(self.plan, self.x, self.model, self.noise, self.init, blend=self.blend, in_place=True)

    def last(self, go_on: Callable[[], bool] = lambda: True, watch: Callable[[State], object] | None = None) -> Latents:
        """Return the latents after the last row, (N, C, h, w).

        Args:
            go_on: Asked after each row; False ends the loop.
            watch: Called with the state after each row; what it raises ends the loop.

        Raises:
            NotFinite: Latents are not finite; the error names the row.
        """
        if self.fused is not None and watch is None:
            x = self.fused.sample(self.plan, self.x, self.noise, self.init)
            if np.isfinite(x).all():
                return x
        for state in check_finite(self.steps(), self.network):
            x = state.x
            if watch is not None:
                watch(state)
            if not go_on():
                break
        return x


def guided_network(
    network: Network,
    guidance: Guidance,
    conditioning: Mapping[str, Array],
    controls: Controls,
    channels: int,
    name: str = UNET,
) -> Model:
    """Return a network with its controls and guidance as one function (x, t) -> prediction, (N, C, h, w) both.

    Args:
        network: The network.
        guidance: Its rows, and how they are weighed.
        conditioning: Its inputs that do not change, as `condition` makes them.
        controls: What gives it residuals.
        channels: C, of the latents.
        name: Its name, by which its input that is the latents, and its output, are called.
    """
    idx, inputs = guidance.idx, dict(conditioning)
    beside = inputs.pop(BESIDE_STATE, None)

    def model(x: Latents, t: float, into: Latents | None = None) -> Latents:
        x, times = x[idx], np.full(len(idx), t, np.float32)
        sample = x if beside is None else np.concatenate([x, beside], axis=1)
        out = network(**{STATES[name]: sample}, timestep=times, **inputs, **controls(x, times))[PREDICTIONS[name]]
        return guidance.combine(out.astype(np.float32, copy=False), into, channels)

    return model


def check_finite(states: Iterator[State], network: str = UNET) -> Iterator[State]:
    """Yield states; raise `NotFinite` at the first whose latents are not."""
    for state in states:
        if not np.isfinite(state.x).all():
            raise NotFinite(network, f"latents are not finite after row {state.row}", hint=FINITE_HINT)
        yield state


@dataclass
class ModelOfRow:
    """Predicts with another model at each row of a plan, whose calls come in the plan's order.

    Attributes:
        times: The time of each row. Some samplers have two rows of one time.
        models: The model of each row.
        row: The row after the last call's.
    """

    times: Sequence[float]
    models: Sequence[Model]
    row: int = 0

    def __call__(self, x: Latents, t: float, into: Latents | None = None) -> Latents:
        """Predict by the model of the next row that has the time t, (N, C, h, w)."""
        order = (*range(self.row, len(self.times)), *range(self.row))
        row = min(order, key=lambda each: abs(self.times[each] - t))  # the first of several
        self.row = row + 1
        prediction: Latents = self.models[row](x, t, into)
        return prediction


def _end_step(step_end: StepEnd, plan: Plan, blend: Blend | None, row: int, x: Latents) -> Latents:
    """Blend the latents after a row, then give them to a callback, which may return others of the same shape."""
    latents: Array = x.copy() if blend is None else np.array(blend(row, x))
    arguments: Arrays = {"latents": latents}
    returned = step_end(row, float(plan.t[row]), arguments)
    latents = np.asarray((returned or {}).get("latents", latents), np.float32)
    if latents.shape != x.shape:
        problem = "callback_on_step_end returned latents of another shape"
        raise InvalidRequest("request", problem, expected=x.shape, found=latents.shape)
    return latents
