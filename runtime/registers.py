"""A plan at work: its latents lie in slots of one buffer, and a row computes only what is new.

That s1' = m or s2' = 3 s1 moves no numbers: the slot goes by another name and a factor. When a slot is free again is
known beforehand, as it is to a compiler that hands out registers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import LdmrtError

if TYPE_CHECKING:
    from .sampler import Latents, Plan

_ROUNDING = 1e-15  # of a row's largest weight: what float64 leaves of a term that cancels


@dataclass(frozen=True)
class Wire:
    """Where a sum comes from, every `step`-th slot from first to last, and where it goes."""

    first: int
    last: int
    step: int
    slot: int


@dataclass(frozen=True, slots=True)
class Sum:
    """A new latent: slots weighted and added up."""

    wire: Wire
    weights: dict[Any, NDArray[Any]]  # by dtype


@dataclass(frozen=True, slots=True)
class Move:
    """What a row does, by slots."""

    x: int  # the latents that the network sees
    m: int  # what it says
    z: int | None  # fresh noise
    x0: int | None  # m as a clean picture, through the hooks
    sums: Sequence[Sum]  # the new x first


def lay_out(plan: "Plan") -> tuple[list[Move], int]:
    """The moves of a plan, and how many slots they need. What a row read stays until the next row."""
    moves: list[Move] = []
    x = 0
    saved: list[dict[int, float]] = [{}] * (plan.table.shape[1] - 1)  # s1 .. sk: a slot and its factor, or nothing
    for row, matrix in enumerate(plan.table if plan.hooked else plan.folded):
        free = (slot for slot in count() if slot not in frozenset({x}.union(*saved)))
        m, z, x0 = next(free), next(free) if plan.draws(row) else None, next(free) if plan.hooked else None
        inputs = [{m: 1.0}, {x: 1.0}, *saved, {} if z is None else {z: 1.0}, {} if x0 is None else {x0: 1.0}]
        sums: list[Sum] = []
        new: list[dict[int, float]] = []
        for output, line in enumerate(matrix):
            weights: dict[int, float] = {}
            for weight, terms in zip(line, inputs, strict=False):
                if abs(weight) > _ROUNDING * np.abs(line).max():
                    weights |= {slot: weights.get(slot, 0.0) + factor * weight for slot, factor in terms.items()}
            if output == 0 or len(weights) > 1:
                slot = next(free)
                sums.append(_sum(slot, {m: 0.0, x: 0.0, **weights} if len(weights) < 2 else weights))
                weights = {slot: 1.0}
            new.append(weights)
        moves.append(Move(x, m, z, x0, sums))
        (x,), *saved = new
    return moves, 1 + max(max(move.m, *(one.wire.slot for one in move.sums)) for move in moves)


def _sum(slot: int, weights: dict[int, float]) -> Sum:
    """Of two terms at least: NumPy has no fast product of one."""
    slots = sorted(weights)
    step = int(np.gcd.reduce(np.diff(slots)))
    dense = [weights.get(one, 0.0) for one in range(slots[0], slots[-1] + 1, step)]
    dtypes = map(np.dtype, (np.float32, np.float64))
    return Sum(Wire(slots[0], slots[-1], step, slot), {dtype: np.array(dense, dtype) for dtype in dtypes})


class Registers:
    """The latents of one run of a plan. Allocates once; after that only hooks and learned variances do."""

    def __init__(self, plan: "Plan", x: "Latents") -> None:
        """`x` are the first latents, (B, C, h, w), of float32 or float64."""
        self._plan, (self._moves, slots) = plan, plan.layout
        self._slots = np.empty((slots, *x.shape), np.float64 if x.dtype == np.float64 else np.float32)
        self._slots.fill(0)  # written to here, so that no row is the first to touch the memory
        flat = self._slots.reshape(slots, len(x), -1)
        # Looked up by each row, for there are few of them.
        self._views = {
            wire: (flat[wire.first : wire.last + 1 : wire.step].swapaxes(0, 1), flat[wire.slot])
            for wire in {one.wire for move in self._moves for one in move.sums}
        }
        self._slots[0] = x
        self.x = self._slots[0]
        self._row = -1

    def move(self, row: int, m: "Latents", z: "Latents | None" = None) -> "Latents":
        """Everything a sampler does between two evaluations of the network: the latents after a row.

        They are a buffer that later rows write over.
        """
        plan, move, slots, views = self._plan, self._moves[row], self._slots, self._views
        self._row = row
        if plan.learned and m.shape[1] == 2 * slots.shape[2]:
            m, variance = np.split(m, 2, axis=1)
            if plan.spread is not None and z is not None:  # Nichol & Dhariwal 2021, equation 15
                z = z * plan.spread[row] ** ((variance + 1) / 4)
            elif z is not None and plan.learned == "learned":
                z = z * np.sqrt(variance)
        slots[move.m] = m
        if move.z is not None:
            if z is None:
                raise LdmrtError("sampler", "this plan draws noise", expected="noise(row)", found=None)
            slots[move.z] = z
        if move.x0 is not None:
            slots[move.x0] = self.seen(row)
        for one in move.sums:  # a product for each picture: its bits do not hang on the others
            inputs, out = views[one.wire]
            np.matmul(one.weights[slots.dtype], inputs, out=out)
        self.x = slots[move.sums[0].wire.slot]
        return self.x

    def seen(self, row: int) -> "Latents":
        """The network's word at the latest row as a clean picture, through the plan's hooks."""
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
