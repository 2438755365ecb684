"""A plan at work: its latents lie in slots of one buffer, and a row computes only what is new.

That s1' = m or s2' = 3 s1 moves no numbers: the slot goes by another name and a factor. When a slot is free again is
known beforehand, as it is to a compiler that hands out registers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError

from .plan import Latents, Plan

_LAID_OUT: WeakKeyDictionary[Plan, tuple[list["RowProgram"], int]] = WeakKeyDictionary()  # once for each plan
_ROUNDING = 1e-15  # of a row's largest weight: what float64 leaves of a term that cancels


@dataclass(frozen=True)
class Operands:
    """Which slots a product reads, evenly spaced, and which it writes, side by side: each from, to, and in steps of."""

    read: tuple[int, int, int]
    written: tuple[int, int]


@dataclass(frozen=True, slots=True)
class RowProgram:
    """Says what a row does, by slots."""

    x: int  # the latents that the network sees
    m: int  # what it says
    z: int | None  # fresh noise
    x0: int | None  # m as a clean image, through the hooks
    wires: Operands  # the first that is written is the new x
    weights: dict[Any, NDArray[Any]]  # by dtype: (written, read), or (read,) where one is written


class Slots:
    """Hands out slots of a buffer: those that make it grow least, then those nearest to the others."""

    def __init__(self) -> None:
        self.count = 1  # the first latents'

    def take(self, taken: set[int], number: int = 1, read: Sequence[int] = ()) -> int:
        """The first of `number` slots side by side, which are then `taken` too. None lies among those that are `read`:
        NumPy would copy a product that is written there.
        """
        low, high = min(read or taken), 1 + max(read or taken)
        starts = range(max(self.count, high) + 1)
        apart = (one for one in starts if not read or one >= high or one + number <= low)
        free = (one for one in apart if taken.isdisjoint(range(one, one + number)))
        first = min(free, key=lambda one: (max(self.count, one + number), abs(2 * one + number - low - high)))
        self.count = max(self.count, first + number)
        taken |= {*range(first, first + number)}
        return first


def assign_slots(plan: Plan) -> tuple[list[RowProgram], int]:
    """The moves of a plan, and how many slots they need. What a row read stays until the next row."""
    moves, slots = [], Slots()
    x = 0
    saved: list[dict[int, float]] = [{}] * (plan.table.shape[1] - 1)  # s1 .. sk: a slot and its factor, or nothing
    for row, matrix in enumerate(plan.table if plan.hooked else plan.folded):
        taken = {x}.union(*saved)
        m = slots.take(taken)
        z = slots.take(taken) if plan.draws(row) else None
        x0 = slots.take(taken) if plan.hooked else None
        inputs = [{m: 1.0}, {x: 1.0}, *saved, {} if z is None else {z: 1.0}, {} if x0 is None else {x0: 1.0}]
        outputs: list[dict[int, float]] = []
        for line in matrix:
            weights: dict[int, float] = {}
            for weight, terms in zip(line, inputs, strict=False):
                if abs(weight) > _ROUNDING * np.abs(line).max():
                    weights |= {slot: weights.get(slot, 0.0) + factor * weight for slot, factor in terms.items()}
            outputs.append(weights)
        sums = [i for i, weights in enumerate(outputs) if i == 0 or len(weights) > 1]  # else a slot by another name
        read = sorted({slot for i in sums for slot in outputs[i]})
        read = read if len(read) > 1 else sorted({m, x, *read})  # NumPy has no fast product of one
        first = slots.take(taken, len(sums), read)
        wires = Operands((read[0], read[-1] + 1, int(np.gcd.reduce(np.diff(read)))), (first, first + len(sums)))
        dense = np.squeeze([[outputs[i].get(slot, 0.0) for slot in range(*wires.read)] for i in sums])
        by_dtype = {np.dtype(dtype): dense.astype(dtype) for dtype in (np.float32, np.float64)}
        moves.append(RowProgram(x, m, z, x0, wires, by_dtype))
        for slot, i in enumerate(sums, first):
            outputs[i] = {slot: 1.0}
        (x,), *saved = outputs
    return moves, slots.count


def _laid_out(plan: Plan) -> tuple[list[RowProgram], int]:
    """The result of `assign_slots`, computed once for each plan."""
    if plan not in _LAID_OUT:
        _LAID_OUT[plan] = assign_slots(plan)
    return _LAID_OUT[plan]


class Workspace:
    """The latents of one run of a plan. Allocates once; after that only hooks and learned variances do."""

    def __init__(self, plan: Plan, x: Latents) -> None:
        """`x` are the first latents, (B, C, h, w), of float32 or float64."""
        self._plan, (self._moves, slots) = plan, _laid_out(plan)
        self._slots = np.empty((slots, *x.shape), np.float64 if x.dtype == np.float64 else np.float32)
        self._slots.fill(0)  # written to here, so that no row is the first to touch the memory
        flat = self._slots.reshape(slots, len(x), -1)
        # Looked up by each row, for there are few of them.
        self._views: dict[Operands, tuple[Latents, Latents]] = {}
        for wires in {move.wires for move in self._moves}:
            written = flat[slice(*wires.written)]
            out = written[0] if len(written) == 1 else written.swapaxes(0, 1)
            self._views[wires] = flat[slice(*wires.read)].swapaxes(0, 1), out
        self._slots[0] = x
        self.x = self._slots[0]
        self._row = -1
        self._lent: tuple[Latents | None, Latents | None] = None, None

    def slots(self, row: int) -> tuple[Latents | None, Latents | None]:
        """Where the network's word at the coming row, and its noise, may be left so that `move` need not copy them. No
        place for a word that says variances too, nor for noise that a row does not draw.
        """
        move = self._moves[row]
        word = None if self._plan.learned else self._slots[move.m]
        self._lent = word, None if move.z is None else self._slots[move.z]
        return self._lent

    def move(self, row: int, m: Latents, z: Latents | None = None) -> Latents:
        """Everything a sampler does between two evaluations of the network: the latents after a row.

        They are a buffer that later rows write over.
        """
        plan, move, slots = self._plan, self._moves[row], self._slots
        self._row = row
        if plan.learned and m.shape[1] == 2 * slots.shape[2]:
            m, variance = np.split(m, 2, axis=1)
            if plan.spread is not None and z is not None:  # Nichol & Dhariwal 2021, equation 15
                z = z * plan.spread[row] ** ((variance + 1) / 4)
            elif z is not None and plan.learned == "learned":
                z = z * np.sqrt(variance)
        if m.shape[1] != slots.shape[2]:
            problem, hint = "the network predicts more than this plan reads", "variance_type learned or learned_range"
            raise LdmrtError("sampler", problem, expected=f"{slots.shape[2]} channels", found=m.shape[1], hint=hint)
        if m is not self._lent[0]:
            slots[move.m] = m
        if move.z is not None:
            if z is None:
                raise LdmrtError("sampler", "this plan draws noise", expected="noise(row)", found=None)
            if z is not self._lent[1]:
                slots[move.z] = z
        if move.x0 is not None:
            slots[move.x0] = self.seen(row)
        inputs, out = self._views[move.wires]
        np.matmul(move.weights[slots.dtype], inputs, out=out)  # image by image: its bits do not hang on the others
        self.x = slots[move.wires.written[0]]
        return self.x

    def seen(self, row: int) -> Latents:
        """The network's word at the latest row as a clean image, through the plan's hooks."""
        if row != self._row:
            raise LdmrtError(
                "sampler", f"x0 of row {row} is gone", expected="asking before the next row", found=self._row
            )
        move = self._moves[row]
        kx, km = self._plan.read[row].astype(self._slots.dtype)
        x0 = kx * self._slots[move.x] + km * self._slots[move.m]
        if self._plan.threshold is not None:
            share, most = self._plan.threshold
            axes = tuple(range(1, x0.ndim))
            bound = np.clip(np.quantile(np.abs(x0), share, axis=axes, keepdims=True), 1, most).astype(x0.dtype)
            x0 = np.clip(x0, -bound, bound) / bound
        elif self._plan.clip is not None:
            x0 = np.clip(x0, -self._plan.clip, self._plan.clip)
        return x0
