"""The loop that runs a plan: one call of the network and one row of the table after another."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from .plan import Latents, Plan
from .workspace import Workspace

Model = Callable[..., Latents]  # model(x, t) -> (B, C, h, w); in place model(x, t, into)
Noise = Callable[..., Latents]  # noise(row) -> (B, C, h, w); in place noise(row, into)
Blend = Callable[[int, Latents], Latents]  # blend(row, x) -> x, (B, C, h, w)


@dataclass(frozen=True, slots=True)
class State:
    """Holds the latents after a row.

    Attributes:
        row: Number of the row in the plan, from 0.
        rows: How many rows the plan has.
        x: Latents after the row, (B, C, h, w): an array of the caller's own.
        stage: The stage of a cascade that the row belongs to.
    """

    row: int
    rows: int
    x: Latents = field(repr=False)
    _predict_x0: Callable[[], Latents] = field(repr=False)
    stage: str = "base"

    @property
    def x0(self) -> Latents:
        """Compute the clean latents that the row predicts, (B, C, h, w), for a preview.

        Ask for them before the sampler's next row.

        Raises:
            LdmrtError: A later row has run.
        """
        return self._predict_x0()


def steps(
    plan: Plan,
    x: Latents,
    model: Model,
    noise: Noise | None = None,
    init: Latents | None = None,
    *,
    blend: Blend | None = None,
    in_place: bool = False,
) -> Iterator[State]:
    """Run a plan and yield the state after every row.

    Args:
        plan: A sampler, solved for one grid.
        x: First latents, (B, C, h, w), float32 or float64: unit noise times `plan.prior_scale`, or with `init` unit
            noise alone. The array is left as it is.
        model: The guided network, `model(x, t) -> (B, C, h, w)`, or (B, 2C, h, w) with a variance. It receives
            latents of the model's own space in a buffer that it may neither keep nor change, and model time as a
            float: 0 to 999 for Stable Diffusion.
        noise: `noise(row) -> (B, C, h, w)`, unit variance; called only where `plan.draws(row)`.
        init: Clean latents of an image to start from, (B, C, h, w); the plan adds `x` to them as noise.
        blend: `blend(row, x)` returns the latents that the next row goes on with, (B, C, h, w), as inpainting keeps a
            part of an image.
        in_place: Call `model(x, t, into)` and `noise(row, into)`, which may write their result to `into`, (B, C, h, w),
            and return it, so that nothing is copied. `into` is None where the network predicts a variance too.

    Yields:
        The state after each row, with a copy of its latents.

    Raises:
        InvalidRequest: The plan draws noise and `noise` is None.
        LdmrtError: The prediction has more channels than the plan reads.
    """
    for row, run in _walk(plan, x, model, noise, init, in_place):
        if blend is not None:
            run.x[...] = blend(row, run.x)
        yield State(row, plan.rows, run.x.copy(), partial(run.predicted_x0, row))


def sample(plan: Plan, x: Latents, model: Model, noise: Noise | None = None, init: Latents | None = None) -> Latents:
    """Run a plan to its end, without copies of the latents between its rows.

    Args:
        plan: A sampler, solved for one grid.
        x: First latents, (B, C, h, w), float32 or float64: unit noise times `plan.prior_scale`, or with `init` unit
            noise alone.
        model: The guided network, `model(x, t) -> (B, C, h, w)`; t is model time, 0 to 999 for Stable Diffusion.
        noise: `noise(row) -> (B, C, h, w)`, unit variance; needed where `plan.draws(row)`.
        init: Clean latents of an image to start from, (B, C, h, w).

    Returns:
        The latents after the last row, (B, C, h, w), float64 where the first latents are, float32 else.

    Raises:
        InvalidRequest: The plan draws noise and `noise` is None.
        LdmrtError: The prediction has more channels than the plan reads.
    """
    for _, run in _walk(plan, x, model, noise, init):
        x = run.x
    last: Latents = x.copy()
    return last


def _walk(
    plan: Plan,
    x: Latents,
    model: Model,
    noise: Noise | None,
    init: Latents | None,
    in_place: bool = False,
) -> Iterator[tuple[int, Workspace]]:
    """Run row after row, and yield each with the workspace that holds its latents."""
    run = Workspace(plan, x if init is None else plan.noised(init, x))
    for row, t in enumerate(plan.t.tolist()):
        into_m, into_z = ((into,) for into in run.slots(row)) if in_place else ((), ())
        m = model(run.x, t, *into_m)
        run.move(row, m, noise(row, *into_z) if noise is not None and plan.draws(row) else None)
        yield row, run
