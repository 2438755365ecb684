"""The loop that runs a plan: one call of the network and one row of the table after another."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from .plan import Latents, Plan
from .workspace import Workspace

Model = Callable[..., Latents]
Noise = Callable[..., Latents]
Blend = Callable[[int, Latents], Latents]


@dataclass(frozen=True, slots=True)
class State:
    """Holds the latents after `row` and the prediction that led to them."""

    row: int
    rows: int
    x: Latents = field(repr=False)  # (B, C, h, w)
    _seen: Callable[[], Latents] = field(repr=False)

    @property
    def x0(self) -> Latents:
        """The network's word at this row as a clean image: the preview. Ask before the sampler's next row."""
        return self._seen()


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
    """Run a plan and yield after every row.

    `x` are the first latents, (B, C, h, w): unit noise times `plan.prior_scale`; with `init`, the latents of an image
    to start from, unit noise. `model(x, t)` is given latents in the model's own space, which it may not keep;
    `noise(row)` is unit noise like x, asked for only where the plan draws. `blend(row, x)` has the last word on the
    latents after a row: inpainting keeps a part. With `in_place` they are `model(x, t, into)` and `noise(row, into)`,
    which may answer by writing to `into`, (B, C, h, w) or None, and returning that.
    """
    for row, run in _walk(plan, x, model, noise, init, in_place):
        if blend is not None:
            run.x[...] = blend(row, run.x)
        yield State(row, plan.rows, run.x.copy(), partial(run.seen, row))


def sample(plan: Plan, x: Latents, model: Model, noise: Noise | None = None, init: Latents | None = None) -> Latents:
    """The latents after the last row of `steps`, without copies of those in between."""
    for _, run in _walk(plan, x, model, noise, init):
        x = run.x
    return x.copy()


def _walk(
    plan: Plan, x: Latents, model: Model, noise: Noise | None, init: Latents | None, in_place: bool = False
) -> Iterator[tuple[int, Workspace]]:
    run = Workspace(plan, x if init is None else plan.noised(init, x))
    for row, t in enumerate(plan.t.tolist()):
        word, fresh = ((into,) for into in run.slots(row)) if in_place else ((), ())
        m = model(run.x, t, *word)
        run.move(row, m, noise(row, *fresh) if noise is not None and plan.draws(row) else None)
        yield row, run
