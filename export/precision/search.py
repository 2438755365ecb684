"""Islands of float32 where a narrow precision would err too much, as PyTorch computes.

Of two modules that cancel each other the one around both becomes the island: what either takes and gives stays narrow.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ldmrt.export.components.component import PRECISIONS, Component
from ldmrt.runtime.bundle.graphs import inside
from ldmrt.runtime.bundle.recording import Case
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.parity import islands as search
from ldmrt.runtime.parity.islands import find_islands, less

from .casting import Regions, computing, modules_of
from .islands import Measured

ACCURATE = torch.float32


def error(part: Component, cases: Sequence[Case], regions: Regions) -> float:
    """Return the largest difference from the recorded outputs where modules compute in these precisions."""
    with computing(part.module, regions):
        return search.error(part.engine(), cases)


def raise_until_accurate(
    measured: Measured, precision: str, islands: Mapping[str, str], limit: float
) -> dict[str, str]:
    """Return the islands that a component needs to err by at most `limit`, with a margin where that is possible.

    Raises:
        LdmrtError: The error exceeds `limit` with every island that helps.
    """
    name = measured.part.name
    found = find_islands(InPyTorch(measured, PRECISIONS[precision]), islands, limit)
    if found.left > limit:
        problem = f"{precision} cannot hold the tolerance, not even with islands of fp32"
        expected, hint = f"{limit:g} of the largest value", f"--precision {precision},{name}=fp32"
        left = f"{found.left:.2g} where every module that it helps computes in float32"
        raise LdmrtError(name, problem, expected=expected, found=left, hint=hint)
    return found.islands


@dataclass
class InPyTorch:
    """A component that PyTorch computes in a narrow precision, with some modules in float32."""

    measured: Measured
    narrow: torch.dtype
    paths: Sequence[str] = field(init=False)
    worst: Case | None = None  # of the first measurement

    def __post_init__(self) -> None:
        """List the modules that were called and have weights."""
        modules = modules_of(self.measured.part.module)
        self.paths = [path for path in self.measured.ranges if any(True for _ in modules[path].parameters())]

    def with_islands(self, islands: Collection[str]) -> float:
        """Return the largest error over all recorded calls."""
        regions = [("", self.narrow), *((path, ACCURATE) for path in islands)]
        each = [error(self.measured.part, [case], regions) for case in self.measured.cases]
        self.worst = self.worst or self.measured.cases[each.index(max(each))]
        return max(each)

    def alone(self, path: str, islands: Collection[str]) -> float:
        """Return the error on the worst call where only this module is narrow, except for the islands in it."""
        kept = [(one, ACCURATE) for one in islands if inside(one, path)]
        return self._on_worst([("", ACCURATE), (path, self.narrow), *kept])

    def remaining(self, path: str) -> float:
        """Return the error on the worst call where only what the module takes and gives is narrow."""
        return self._on_worst([("", ACCURATE), (path, self.narrow), (path, ACCURATE)])

    def gain(self, path: str, outer: str, islands: Collection[str]) -> float:
        """Return what an island of a module takes away, the rest in float32; modules around it change nothing of it."""
        return less(self.alone(path, islands), self.remaining(path))

    def _on_worst(self, regions: Regions) -> float:
        assert self.worst is not None
        return error(self.measured.part, [self.worst], regions)
