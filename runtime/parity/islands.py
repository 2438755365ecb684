"""Islands of float32 where a narrow precision would err too much: which modules of a component they are.

What is weighed is what a module alone does to the component's outputs, in the unit of the tolerance: everything else
computes in float32, the module in the narrow precision. What remains when it computes in float32 too, such as the
rounding of what it takes and gives, no island can take away.
"""

import heapq
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ldmrt.runtime.bundle.graphs import inside
from ldmrt.runtime.bundle.recording import Case
from ldmrt.runtime.tensors import Engine

from .metrics import tensor_error

MARGIN = 2.0  # another prompt or image may err by twice as much as what was measured
SHARP = 0.25  # of the tolerance: what errs by more is looked into, to raise only the part of it that does
LEAST = 0.01  # of the tolerance: a hundred modules of which each errs by less make a tenth of it, signs being random


class Narrowed(Protocol):
    """A component in a narrow precision, whose modules can compute in float32. Errors are relative, as `error`'s."""

    paths: Sequence[str]  # of the modules that can become islands

    def with_islands(self, islands: Collection[str]) -> float:
        """Return the largest error over all recorded calls."""

    def alone(self, path: str, islands: Collection[str]) -> float:
        """Return the error on the worst call where only this module is narrow, except for the islands in it."""

    def remaining(self, path: str) -> float:
        """Return how much of that an island of this module leaves."""

    def gain(self, path: str, outer: str, islands: Collection[str]) -> float:
        """Return how much of the error of the module `outer` alone an island of a module within it takes away."""


class Found(NamedTuple):
    """What `find_islands` found: the islands with their reasons, and the error without and with those that are new."""

    islands: dict[str, str]
    before: float
    left: float


def error(engine: Engine, cases: Sequence[Case]) -> float:
    """Return the largest difference from recorded outputs, relative to the largest value; infinite for NaN."""
    worst = 0.0
    for case in cases:
        found = engine(**case.inputs)
        for name, expected in case.outputs.items():
            one = tensor_error(case.component, "", case.name, name, found[name], expected, 0.0).relative
            worst = max(worst, math.inf if math.isnan(one) else one)
    return worst


def find_islands(component: Narrowed, islands: Mapping[str, str], limit: float) -> Found:
    """Find the islands with which a component errs by at most `limit`, with a margin where that is possible.

    Beside `islands`, the worst modules are raised in rounds of 1, 2, 4 ... until that is reached or none helps. None is
    added where the component errs by at most `limit` without them and no margin can be had.

    Args:
        component: The component.
        islands: Modules that are islands in any case, with the reason of each.
        limit: The tolerance.
    """
    raised = dict(islands)
    before = left = component.with_islands(raised)
    if left <= limit / MARGIN:
        return Found(raised, before, left)
    search, count = _Search(component, raised, limit), 1
    while left > limit / MARGIN and (fresh := search.take(count)):
        for path, alone in fresh.items():
            raised[path] = f"error: {alone:.2g} by this alone, {before:.2g} in all, of tolerance {limit:g}"
        raised = outermost(raised)
        left, count = component.with_islands(raised), 2 * count
    if before <= limit < MARGIN * left:
        return Found(dict(islands), before, before)
    return Found(raised, before, left)


def less(before: float, left: float) -> float:
    """Return the part of an error that goes away; none where what is left is infinite."""
    return 0.0 if math.isinf(left) else before - left


def outermost(islands: Mapping[str, str]) -> dict[str, str]:
    """Keep the paths that lie in no other."""
    return {
        name: why
        for name, why in islands.items()
        if not any(name != other and (other == "" or inside(name, other)) for other in islands)
    }


@dataclass
class _Search:
    """The modules of a component by what an island there would take away."""

    component: Narrowed
    islands: Mapping[str, str]  # that are there already
    limit: float
    queue: list[tuple[float, str, bool]] = field(default_factory=list)  # -error, path, whether what remains is off

    def __post_init__(self) -> None:
        """Measure the outermost modules."""
        self.paths = [path for path in self.component.paths if path and path not in self.islands]
        for path in self.within(""):
            heapq.heappush(self.queue, (-self.component.alone(path, self.islands), path, False))

    def take(self, count: int) -> dict[str, float]:
        """The next modules to raise, and the error of each."""
        taken: dict[str, float] = {}
        while self.queue and len(taken) < count:
            value, path, final = heapq.heappop(self.queue)
            if final:
                path, gain = self.sharpen(path, -value)
                taken[path] = gain
            elif (gain := less(-value, self.component.remaining(path))) > LEAST * self.limit:
                heapq.heappush(self.queue, (-gain, path, True))
        return taken

    def sharpen(self, path: str, gain: float) -> tuple[str, float]:
        """The smallest module within that brings half of it; the others stay in the queue."""
        while gain > SHARP * self.limit:
            parts = {one: self.component.gain(one, path, self.islands) for one in self.within(path)}
            first = max(parts, key=parts.__getitem__, default=None)
            if first is None or parts[first] < gain / 2:
                break
            path, gain = first, parts.pop(first)
            for one, value in parts.items():
                if value > LEAST * self.limit:
                    heapq.heappush(self.queue, (-value, one, True))
        return path, gain

    def within(self, path: str) -> list[str]:
        """Return the modules directly within one."""
        inner = [one for one in self.paths if one != path and (path == "" or inside(one, path))]
        return [one for one in inner if not any(one != other and inside(one, other) for other in inner)]
