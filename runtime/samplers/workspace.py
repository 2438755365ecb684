"""A plan at work: its latents lie in slots of one buffer, and a row computes only what is new.

That s1' = m or s2' = 3 s1 moves no numbers: the slot goes by another name and a factor. When a slot is free again is
known beforehand, as it is to a compiler that assigns registers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from ldmrt.runtime.errors import InvalidRequest, LdmrtError
from ldmrt.runtime.tensors import Array

from .plan import Latents, Plan, Variance
from .schedule import Floats

Terms = dict[int, float]  # latents as a weighted sum of slots: empty is zero, one term is a slot under another name

_ASSIGNED: WeakKeyDictionary[Plan, tuple[list["RowProgram"], int]] = WeakKeyDictionary()  # once for each plan
_ROUNDING = 1e-15  # of a row's largest weight: what float64 leaves of a term that cancels


@dataclass(frozen=True)
class Operands:
    """Names the slots that a product reads, evenly spaced, and those that it writes, side by side."""

    read: tuple[int, int, int]  # from, to, and in steps of
    written: tuple[int, int]  # from, to


@dataclass(frozen=True, slots=True)
class RowProgram:
    """Names the slots that a row reads, and holds its weights."""

    x: int  # the latents that the network sees
    m: int  # its prediction
    z: int | None  # fresh noise
    x0: int | None  # m as clean latents, through the hooks
    operands: Operands  # the first slot that is written holds the new x
    weights: Mapping[np.dtype[np.generic], Array]  # by dtype: (written, read), or (read,) where one slot is written


class Slots:
    """Hands out slots of a buffer: those that make it grow least, then those nearest to the others."""

    def __init__(self) -> None:
        """Begin with one slot, which holds the first latents."""
        self.count = 1

    def take(self, taken: set[int], number: int = 1, read: Sequence[int] = ()) -> int:
        """Take `number` free slots side by side, add them to `taken`, and return the first.

        None lies among the slots that are `read`: NumPy would copy a product that is written there.
        """
        low, high = min(read or taken), 1 + max(read or taken)
        starts = range(max(self.count, high) + 1)
        apart = (start for start in starts if not read or start >= high or start + number <= low)
        free = (start for start in apart if taken.isdisjoint(range(start, start + number)))
        first = min(free, key=lambda start: (max(self.count, start + number), abs(2 * start + number - low - high)))
        self.count = max(self.count, first + number)
        taken |= {*range(first, first + number)}
        return first


def assign_slots(plan: Plan) -> tuple[list[RowProgram], int]:
    """Compute the program of every row of a plan, and how many slots they need.

    The slots that a row reads keep their contents until the next row, so that x0 can be asked for.
    """
    programs, slots = list[RowProgram](), Slots()
    x = 0
    saved: list[Terms] = [{}] * (plan.table.shape[1] - 1)  # s1 .. sk: nothing is saved yet
    for row, matrix in enumerate(plan.table if plan.bounds_x0 else plan.fused):
        taken = {x}.union(*saved)
        m = slots.take(taken)
        z = slots.take(taken) if plan.draws(row) else None
        x0 = slots.take(taken) if plan.bounds_x0 else None
        inputs: list[Terms] = [{m: 1.0}, {x: 1.0}, *saved, {} if z is None else {z: 1.0}]
        inputs += [] if x0 is None else [{x0: 1.0}]  # `plan.fused` has no column for it
        outputs = [_expanded(weights, inputs) for weights in matrix]
        # The new x is always computed; saved latents that are a multiple of one slot are that slot under another name.
        computed = [i for i, terms in enumerate(outputs) if i == 0 or len(terms) > 1]
        read = sorted({slot for i in computed for slot in outputs[i]})
        read = read if len(read) > 1 else sorted({m, x, *read})  # NumPy has no fast product of one
        first = slots.take(taken, len(computed), read)
        operands = Operands((read[0], read[-1] + 1, int(np.gcd.reduce(np.diff(read)))), (first, first + len(computed)))
        programs.append(RowProgram(x, m, z, x0, operands, _dense([outputs[i] for i in computed], operands)))
        for slot, i in enumerate(computed, first):
            outputs[i] = {slot: 1.0}
        x, saved = first, outputs[1:]
    return programs, slots.count


def _expanded(weights: Floats, inputs: Sequence[Terms]) -> Terms:
    """Write a line of the table, (inputs,), in terms of slots, without weights that are rounding."""
    least = _ROUNDING * np.abs(weights).max()
    sums: Terms = {}
    for weight, terms in zip(weights, inputs, strict=True):
        for slot, factor in terms.items() if abs(weight) > least else ():
            sums[slot] = sums.get(slot, 0.0) + factor * weight
    return sums


def _dense(sums: Sequence[Terms], operands: Operands) -> dict[np.dtype[np.generic], Array]:
    """Write the weights of some sums as one matrix, (written, read), or (read,) for one sum, in both dtypes."""
    dense = np.squeeze([[terms.get(slot, 0.0) for slot in range(*operands.read)] for terms in sums])
    return {np.dtype(dtype): dense.astype(dtype) for dtype in (np.float32, np.float64)}


def _assigned(plan: Plan) -> tuple[list[RowProgram], int]:
    """Return the result of `assign_slots`, computed once for each plan."""
    if plan not in _ASSIGNED:
        _ASSIGNED[plan] = assign_slots(plan)
    return _ASSIGNED[plan]


def _resized(program: RowProgram, z: int, weights: Array, sizes: Floats) -> Array:
    """Return the weights of a correction whose step size differs between images, (B, 1, read).

    Args:
        program: The row's.
        z: The slot of its noise.
        weights: Those of step size 1, (read,).
        sizes: The step size of each image, (B,).
    """
    read = range(*program.operands.read)
    factors = np.ones((len(sizes), len(read)))
    factors[:, read.index(program.m)] = sizes
    factors[:, read.index(z)] = np.sqrt(sizes)
    out: Array = (weights * factors)[:, None].astype(weights.dtype)
    return out


class Workspace:
    """Holds the latents of one run of a plan.

    It allocates once; after that only hooks and learned variances allocate.

    Attributes:
        x: The current latents, (B, C, h, w): a view of the buffer, which later rows write over.
    """

    def __init__(self, plan: Plan, x: Latents) -> None:
        """Allocate the slots of a run.

        Args:
            plan: The plan to run.
            x: First latents, (B, C, h, w), of float32 or float64.
        """
        self._plan, (self._programs, count) = plan, _assigned(plan)
        self._buffer = np.empty((count, *x.shape), np.float64 if x.dtype == np.float64 else np.float32)
        self._buffer.fill(0)  # written to here, so that no row is the first to touch the memory
        self._slots: list[Latents] = list(self._buffer)  # the same objects in all rows, (B, C, h, w)
        flat = self._buffer.reshape(count, len(x), -1)
        self._views: dict[Operands, tuple[Latents, Latents]] = {}  # few rows differ in their operands
        for operands in {program.operands for program in self._programs}:
            written = flat[slice(*operands.written)]
            out = written[0] if len(written) == 1 else written.swapaxes(0, 1)
            self._views[operands] = flat[slice(*operands.read)].swapaxes(0, 1), out
        self.x: Latents = self._slots[0]
        self.x[...] = x
        self._row = -1

    def slots(self, row: int) -> tuple[Latents | None, Latents | None]:
        """Return the slots of the coming row for the prediction and the noise, each (B, C, h, w).

        Arrays that are written there and handed to `move` are not copied. The first is None where the network
        predicts a variance too, the second where the row draws no noise.
        """
        program = self._programs[row]
        m = None if self._plan.predicts_variance else self._slots[program.m]
        return m, None if program.z is None else self._slots[program.z]

    def move(self, row: int, m: Latents, z: Latents | None = None) -> Latents:
        """Do everything that a sampler does between two evaluations of the network.

        Args:
            row: The row of the plan; rows run in order.
            m: The guided prediction, (B, C, h, w), or (B, 2C, h, w) with a variance.
            z: Unit noise, (B, C, h, w), where the plan draws it.

        Returns:
            The latents after the row, (B, C, h, w): a view of the buffer, which later rows write over.

        Raises:
            InvalidRequest: The plan draws noise and `z` is None.
            LdmrtError: The network predicts more channels than the plan reads.
        """
        program, slots, channels = self._programs[row], self._slots, self._buffer.shape[2]
        self._row = row
        if self._plan.predicts_variance and m.shape[1] == 2 * channels:
            m, variance = np.split(m, 2, axis=1)
            z = z if z is None else self._scaled(row, z, variance)
        if m.shape[1] != channels:
            problem, hint = "the network predicts more than this plan reads", "variance_type learned or learned_range"
            raise LdmrtError("sampler", problem, expected=f"{channels} channels", found=m.shape[1], hint=hint)
        if m is not slots[program.m]:
            slots[program.m][...] = m
        if program.z is not None:
            if z is None:
                raise InvalidRequest("sampler", "this plan draws noise", expected="noise(row)", found=None)
            if z is not slots[program.z]:
                slots[program.z][...] = z
        if program.x0 is not None:
            slots[program.x0][...] = self.predicted_x0(row)
        inputs, out = self._views[program.operands]
        weights = program.weights[self._buffer.dtype]
        if (langevin := self._plan.langevin) is not None and program.z is not None and langevin.corrects(row):
            sizes = langevin.sizes(slots[program.m], slots[program.z])
            weights, out = _resized(program, program.z, weights, sizes), out[:, None]
        # Each image is a product of its own, so its bits do not depend on the others of the batch.
        np.matmul(weights, inputs, out=out)
        self.x = slots[program.operands.written[0]]
        return self.x

    def _scaled(self, row: int, z: Latents, variance: Latents) -> Latents:
        """Scale noise by the deviation that the network predicts (Nichol & Dhariwal 2021, equation 15)."""
        if self._plan.spread is not None:
            z = z * self._plan.spread[row] ** ((variance + 1) / 4)
        elif self._plan.variance is Variance.LEARNED:
            z = z * np.sqrt(variance)
        return z

    def predicted_x0(self, row: int) -> Latents:
        """Return the clean latents that the latest row predicts, (B, C, h, w), through the plan's hooks.

        Raises:
            LdmrtError: A later row has run, and has written over the prediction.
        """
        if row != self._row:
            expected = "asking before the next row"
            raise LdmrtError("sampler", f"x0 of row {row} is gone", expected=expected, found=self._row)
        program = self._programs[row]
        kx, km = self._plan.read[row].astype(self._buffer.dtype)
        x0: Latents = kx * self._slots[program.x] + km * self._slots[program.m]
        if self._plan.threshold is not None:
            quantile, most = self._plan.threshold
            axes = tuple(range(1, x0.ndim))
            bound = np.clip(np.quantile(np.abs(x0), quantile, axis=axes, keepdims=True), 1, most).astype(x0.dtype)
            x0 = np.clip(x0, -bound, bound) / bound
        elif self._plan.clip is not None:
            x0 = np.clip(x0, -self._plan.clip, self._plan.clip)
        return x0
