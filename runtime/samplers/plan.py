"""A sampler is a table: one row per network evaluation, run by one loop that keeps no state but its registers.

With x = alpha * x0 + sigma * eps in the model's own space, a row is a small matrix,

    (x, s1 .. sk)' = T @ (m, x, s1 .. sk, z, x0)

where s1 .. sk are latents saved by earlier rows, m the (guided) network output, z unit noise, and x0 what the network
says as a clean image, kx * x + km * m, clipped where the plan clips.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.reading import read_json
from ldmrt.runtime.files.writing import write_atomically

from .schedule import Floats
from .workspace import Move, Registers, lay_out

Latents = NDArray[Any]  # float32; float64 where the caller hands in float64
Model = Callable[..., Latents]
Noise = Callable[..., Latents]
Blend = Callable[[int, Latents], Latents]
M, X, Z, X0 = 0, 1, -2, -1  # columns of a row, and registers; the saved latents stand between x and z


@dataclass(frozen=True, eq=False)
class Plan:
    """A sampler, solved for one grid. Computed in float64; the state it moves is float32."""

    t: Floats = field(repr=False)  # (rows,) model time
    alpha: Floats = field(repr=False)  # (rows,) of the nodes
    sigma: Floats = field(repr=False)
    read: Floats = field(repr=False)  # (rows, 2): kx, km of x0
    table: Floats = field(repr=False)  # (rows, k + 1, k + 4)
    prior_scale: float = 1.0  # the first latents are this times unit noise, or times what another model left
    first: int = 0  # the row of the whole plan that it begins with, where it goes on with another model's latents
    end_alpha: float = 1.0  # of a clean image in the latents after the last row: what inpainting keeps
    clip: float | None = None  # x0 is held within +- this
    threshold: tuple[float, float] | None = None  # quantile and maximum (Saharia et al. 2022, section 2.3)
    learned: str = ""  # the network's second half is the variance ("learned"), or a place in its "learned_range"
    spread: Floats | None = field(default=None, repr=False)  # (rows,) of that range: largest by smallest

    @property
    def rows(self) -> int:
        """How many times the network is evaluated."""
        return len(self.t)

    def draws(self, row: int) -> bool:
        """Whether a row needs fresh noise."""
        return self._draws[row]

    @cached_property
    def _draws(self) -> list[bool]:
        return [bool(row[:, Z].any()) for row in self.table]

    def noised(self, x0: Latents, noise: Latents) -> Latents:
        """The latents at the first node, for a plan that starts from an image."""
        return (self.alpha[0] * x0 + self.sigma[0] * noise).astype(_dtype(x0))

    @property
    def hooked(self) -> bool:
        """Whether something that is not linear stands between the network and the row."""
        return self.clip is not None or self.threshold is not None

    @cached_property
    def folded(self) -> Floats:
        """The table with x0 = kx * x + km * m put in: what a plan without hooks computes, (rows, k + 1, k + 3)."""
        out = self.table[..., :X0].copy()
        out[:, :, X] += self.table[..., X0] * self.read[:, :1]
        out[:, :, M] += self.table[..., X0] * self.read[:, 1:]
        return out

    @cached_property
    def layout(self) -> tuple[list[Move], int]:
        """Return what its rows do, by slots of a buffer, and how many slots there are."""
        return lay_out(self)

    def save(self, path: Path) -> None:
        """Write the plan as JSON, in full precision."""
        state = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in asdict(self).items()}
        with write_atomically(Path(path)) as file:
            file.write(json.dumps(state).encode())

    @staticmethod
    def load(path: Path) -> "Plan":
        """Read what `save` wrote."""
        try:
            state = read_json("plan", Path(path))
            threshold = state.pop("threshold")
            arrays = {key: np.array(value, np.float64) for key, value in state.items() if isinstance(value, list)}
            plan = Plan(**{**state, **arrays, "threshold": threshold and tuple(threshold)})
            rows, kept = plan.table.shape[:2]
            shapes = {"t": (rows,), "alpha": (rows,), "sigma": (rows,), "read": (rows, 2), "spread": (rows,)}
            shapes |= {"table": (rows, kept, kept + 3)}
            if any(one.shape != shapes[key] or not np.isfinite(one).all() for key, one in arrays.items()):
                raise ValueError("arrays that do not fit one another")
            return plan
        except (LdmrtError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            found, expected = first_line(error), "what Plan.save wrote"
            raise LdmrtError("plan", f"{path} cannot be read", expected=expected, found=found) from error

    def __str__(self) -> str:
        saved = [f"s{i}" for i in range(1, self.table.shape[1])]
        inputs = ["m", "x", *saved, "z", "x0"]
        lines = [f"{'row':>3} {'t':>9} {'alpha':>8} {'sigma':>8}"]
        for row in range(self.rows):
            lines.append(f"{row:>3} {self.t[row]:>9.3f} {self.alpha[row]:>8.5f} {self.sigma[row]:>8.5f}")
            for output, weights in zip(["x", *saved], self.table[row], strict=True):
                terms = [f"{w:+.6g} {name}" for w, name in zip(weights, inputs, strict=True) if w]
                if terms:
                    lines[-1] += f"   {output}' = {' '.join(terms)}"
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class State:
    """The latents after `row`, and what the network said there."""

    row: int
    rows: int
    x: Latents = field(repr=False)  # (B, C, h, w)
    _seen: Callable[[], Latents] = field(repr=False)

    @property
    def x0(self) -> Latents:
        """The network's word at this row as a clean image: the preview. Ask before the sampler's next row."""
        return self._seen()


def _dtype(x: Latents) -> Any:
    return np.float64 if x.dtype == np.float64 else np.float32


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
) -> Iterator[tuple[int, Registers]]:
    run = Registers(plan, x if init is None else plan.noised(init, x))
    for row, t in enumerate(plan.t.tolist()):
        word, fresh = ((into,) for into in run.slots(row)) if in_place else ((), ())
        m = model(run.x, t, *word)
        run.move(row, m, noise(row, *fresh) if noise is not None and plan.draws(row) else None)
        yield row, run
