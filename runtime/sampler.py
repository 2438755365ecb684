"""A sampler is a table: one row per network evaluation, run by one loop that keeps no state but its registers.

With x = alpha * x0 + sigma * eps in the model's own space, a row is a small matrix,

    (x, s1 .. sk)' = T @ (m, x, s1 .. sk, z, x0)

where s1 .. sk are latents saved by earlier rows, m the (guided) network output, z unit noise, and x0 what the network
says as a clean picture, kx * x + km * m, clipped where the plan clips.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import LdmrtError
from .files import write_atomically
from .schedule import Floats

Latents = NDArray[Any]  # float32; float64 where the caller hands in float64
Model = Callable[[Latents, float], Latents]
Noise = Callable[[int], Latents]
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
    prior_scale: float = 1.0  # the first latents are this times unit noise
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
        """The latents at the first node, for a plan that starts from a picture."""
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
    def _matrices(self) -> dict[Any, list[Latents]]:
        """By dtype, what each row multiplies its registers with, without the columns and rows of zeros at its end."""
        rows = []
        for full in self.table if self.hooked else self.folded:
            out, columns = (np.flatnonzero(full.any(axis))[-1] + 1 for axis in (1, 0))
            rows.append(full[:out, :columns])
        return {np.dtype(d): [np.ascontiguousarray(row, d) for row in rows] for d in (np.float32, np.float64)}

    def save(self, path: Path) -> None:
        """As JSON, in full precision."""
        state = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in asdict(self).items()}
        with write_atomically(Path(path)) as file:
            file.write(json.dumps(state).encode())

    @staticmethod
    def load(path: Path) -> "Plan":
        """What `save` wrote."""
        try:
            state = json.loads(Path(path).read_text())
            threshold = state.pop("threshold")
            arrays = {key: np.array(value, np.float64) for key, value in state.items() if isinstance(value, list)}
            plan = Plan(**{**state, **arrays, "threshold": threshold and tuple(threshold)})
            rows, kept = plan.table.shape[:2]
            shapes = {"t": (rows,), "alpha": (rows,), "sigma": (rows,), "read": (rows, 2), "spread": (rows,)}
            shapes |= {"table": (rows, kept, kept + 3)}
            if any(one.shape != shapes[key] or not np.isfinite(one).all() for key, one in arrays.items()):
                raise ValueError("arrays that do not fit one another")
            return plan
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise LdmrtError("plan", f"{path} cannot be read", expected="what Plan.save wrote", found=error) from error

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
        """The network's word at this row as a clean picture: the preview. Ask before the sampler's next row."""
        return self._seen()


def _dtype(x: Latents) -> Any:
    return np.float64 if x.dtype == np.float64 else np.float32


def registers(plan: Plan, x: Latents) -> Latents:
    """The registers before the first row, (k + 4, B, C, h, w)."""
    out = np.zeros((plan.table.shape[2], *x.shape), _dtype(x))
    out[X] = x
    return out


def move(plan: Plan, row: int, before: Latents, m: Latents, z: Latents | None = None, *, out: Latents) -> Latents:
    """Everything a sampler does between two evaluations of the network: the latents after a row.

    `before` are the registers, into which m, z and x0 are written; `out`, others of their shape, become those of the
    next row. Nothing is allocated, but for hooks and learned variances.
    """
    if plan.learned and m.shape[1] == 2 * before.shape[2]:
        m, variance = np.split(m, 2, axis=1)
        if plan.spread is not None and z is not None:  # Nichol & Dhariwal 2021, equation 15
            z = z * plan.spread[row] ** ((variance + 1) / 4)
        elif z is not None and plan.learned == "learned":
            z = z * np.sqrt(variance)
    before[M] = m
    if plan.draws(row):
        if z is None:
            raise LdmrtError("sampler", "this plan draws noise", expected="noise(row)", found=None)
        before[Z] = z
    if plan.hooked:
        before[X0] = seen(plan, row, before)
    matrix = plan._matrices[before.dtype][row]
    height, width = matrix.shape
    batch = before.shape[1]  # a product for each picture: its bits do not hang on the others
    inputs = before[:width].reshape(width, batch, -1).swapaxes(0, 1)
    np.matmul(matrix, inputs, out=out[X : X + height].reshape(height, batch, -1).swapaxes(0, 1))
    return out[X]


def seen(plan: Plan, row: int, registers: Latents) -> Latents:
    """x0 of a row that has been given m, through the plan's hooks."""
    kx, km = plan.read[row].astype(registers.dtype)
    x0 = kx * registers[X] + km * registers[M]
    if plan.threshold is not None:
        share, most = plan.threshold
        axes = tuple(range(1, x0.ndim))
        bound = np.clip(np.quantile(np.abs(x0), share, axis=axes, keepdims=True), 1, most).astype(x0.dtype)
        x0 = np.clip(x0, -bound, bound) / bound
    elif plan.clip is not None:
        x0 = np.clip(x0, -plan.clip, plan.clip)
    return x0


def steps(
    plan: Plan,
    x: Latents,
    model: Model,
    noise: Noise | None = None,
    init: Latents | None = None,
    *,
    blend: Blend | None = None,
) -> Iterator[State]:
    """Run a plan and yield after every row.

    `x` are the first latents, (B, C, h, w): unit noise times `plan.prior_scale`; with `init`, the latents of a picture
    to start from, unit noise. `model(x, t)` is given latents in the model's own space, which it may not keep;
    `noise(row)` is unit noise like x, asked for only where the plan draws. `blend(row, x)` has the last word on the
    latents after a row: inpainting keeps a part.
    """
    now = registers(plan, x if init is None else plan.noised(init, x))
    after = np.zeros(now.shape, now.dtype)  # zeros_like would touch every page
    latest = -1

    def look(row: int) -> Latents:
        if row != latest:
            raise LdmrtError("sampler", f"x0 of row {row} is gone", expected="asking before the next row", found=latest)
        return seen(plan, row, after)  # which are the registers that the row began with

    for latest in range(plan.rows):
        m = model(now[X], float(plan.t[latest]))
        z = noise(latest) if noise is not None and plan.draws(latest) else None
        x = move(plan, latest, now, m, z, out=after)
        if blend is not None:
            x[...] = blend(latest, x)
        x = x.copy()
        now, after = after, now
        yield State(latest, plan.rows, x, partial(look, latest))


def sample(plan: Plan, x: Latents, model: Model, noise: Noise | None = None, init: Latents | None = None) -> Latents:
    """The latents after the last row of `steps`."""
    for state in steps(plan, x, model, noise, init):
        x = state.x
    return x
