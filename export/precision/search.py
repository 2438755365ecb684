"""Islands of float32 where a narrow precision would err too much.

What is weighed is what a module alone does to the component's outputs, in the unit of the tolerance: everything else
computes in float32, the module in the narrow precision. What remains when it computes in float32 too, and only what it
takes and gives is rounded, no island can take away: of two modules that cancel each other the one around both becomes
the island.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ldmrt.export.components.table import PRECISIONS, Component
from ldmrt.export.graph.naming import inside
from ldmrt.runtime.bundle.recording import Case
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.parity.metrics import tensor_error

from .casting import Regions, computing, modules_of
from .islands import Measured, outermost

ACCURATE = torch.float32
MARGIN = 2.0  # another prompt or image may err by twice as much as what was measured
SHARP = 0.25  # of the tolerance: what errs by more is looked into, to raise only the part of it that does
LEAST = 0.01  # of the tolerance: a hundred modules of which each errs by less make a tenth of it, signs being random


def error(part: Component, cases: Sequence[Case], regions: Regions) -> float:
    """Return the largest difference from the recorded outputs, relative to the largest value; infinite for NaN."""
    worst, engine = 0.0, part.engine()
    with computing(part.module, regions):
        for case in cases:
            found = engine(**case.inputs)
            for name, expected in case.outputs.items():
                one = tensor_error(part.name, "", case.name, name, found[name], expected, 0.0).relative
                worst = max(worst, math.inf if math.isnan(one) else one)
    return worst


def raise_until_accurate(
    measured: Measured, precision: str, islands: Mapping[str, str], limit: float
) -> dict[str, str]:
    """Return the islands that a component needs to err by at most `limit`, with a margin where that is possible.

    Beside `islands`, the worst modules are raised in rounds of 1, 2, 4 ...

    Raises:
        LdmrtError: The error exceeds `limit` with every island that helps.
    """
    part, narrow = measured.part, PRECISIONS[precision]

    def lowered(found: Mapping[str, str]) -> Regions:
        return [("", narrow), *((path, ACCURATE) for path in found)]

    raised = dict(islands)
    each = [error(part, [case], lowered(raised)) for case in measured.cases]
    before = left = max(each)
    if left <= limit / MARGIN:
        return raised
    worst = measured.cases[each.index(left)]
    search, count = _Search(measured, worst, narrow, raised, limit), 1
    while left > limit / MARGIN and (fresh := search.take(count)):
        for path, alone in fresh.items():
            raised[path] = f"error: {alone:.2g} by this alone, {before:.2g} in all, of tolerance {limit:g}"
        raised = outermost(raised)
        left, count = error(part, measured.cases, lowered(raised)), 2 * count
    if left > limit:
        problem = f"{precision} cannot hold the tolerance, not even with islands of fp32"
        expected, hint = f"{limit:g} of the largest value", f"--precision {precision},{part.name}=fp32"
        found = f"{left:.2g} where every module that it helps computes in float32"
        raise LdmrtError(part.name, problem, expected=expected, found=found, hint=hint)
    return raised if left <= limit / MARGIN or before > limit else dict(islands)


@dataclass
class _Search:
    """The modules of a component by what an island there would take away, on one call."""

    measured: Measured
    case: Case
    narrow: torch.dtype
    islands: Mapping[str, str]  # that are there already
    limit: float
    queue: list[tuple[float, str, bool]] = field(default_factory=list)  # -error, path, whether the door's is off

    def __post_init__(self) -> None:
        """Measure the outermost modules."""
        modules = modules_of(self.measured.part.module)
        self.paths = [
            path
            for path in self.measured.ranges  # those that were called
            if path and path not in self.islands and any(True for _ in modules[path].parameters())
        ]
        for path in self.within(""):
            heapq.heappush(self.queue, (-self.alone(path), path, False))

    def take(self, count: int) -> dict[str, float]:
        """The next modules to raise, and the error of each."""
        taken: dict[str, float] = {}
        while self.queue and len(taken) < count:
            value, path, final = heapq.heappop(self.queue)
            if final:
                path, gain = self.sharpen(path, -value)
                taken[path] = gain
            elif (gain := self.gain(path, -value)) > LEAST * self.limit:
                heapq.heappush(self.queue, (-gain, path, True))
        return taken

    def sharpen(self, path: str, gain: float) -> tuple[str, float]:
        """The smallest module within that brings half of it; the others stay in the queue."""
        while gain > SHARP * self.limit:
            parts = {one: self.gain(one, self.alone(one)) for one in self.within(path)}
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

    def alone(self, path: str) -> float:
        """The error where only this module is narrow, but for the islands in it."""
        kept = [(one, ACCURATE) for one in self.islands if inside(one, path)]
        return error(self.measured.part, [self.case], [("", ACCURATE), (path, self.narrow), *kept])

    def gain(self, path: str, alone: float) -> float:
        """Return the part of this error that goes away where only what the module takes and gives is narrow."""
        left = error(self.measured.part, [self.case], [("", ACCURATE), (path, self.narrow), (path, ACCURATE)])
        return 0.0 if math.isinf(left) else alone - left
