"""A component that OpenVINO computes in a narrow precision, as the search for islands measures it."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from ldmrt.runtime.backends.openvino.engine import OpenVinoEngine
from ldmrt.runtime.backends.openvino.network import modules
from ldmrt.runtime.backends.openvino.ranges import Range, Ranges
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.graphs import DECODER, DECODER_FP32, inside
from ldmrt.runtime.bundle.recording import Case, Recording
from ldmrt.runtime.errors import LdmrtError

from .islands import error, find_islands
from .tolerances import tolerances


@dataclass
class InOpenVino:
    """Opens a component's network anew for every set of islands.

    Attributes:
        bundle: The opened bundle.
        name: The component.
        backend: A backend of OpenVINO's.
        compute: The narrow precision.
        cases: Its recorded calls.
        ranges: Of activations, for int8: without islands these modules compute in it.
    """

    bundle: Bundle
    name: str
    backend: str
    compute: str
    cases: Sequence[Case]
    ranges: Mapping[str, Range] | None = None
    paths: Sequence[str] = field(init=False)
    worst: Case | None = None  # of the first measurement
    measured: dict[tuple[str, ...], float | None] = field(default_factory=dict)  # on it, by module and islands

    def __post_init__(self) -> None:
        """List the modules of its graph, without opening it."""
        self.paths = modules(self.name, self.bundle.model(self.name))

    def with_islands(self, islands: Collection[str]) -> float:
        """Return the largest error over all recorded calls; infinite where OpenVINO cannot run it with these islands.

        Raises:
            LdmrtError: It cannot run it without islands.
        """
        try:
            each = self._errors(lambda path: any(inside(path, island) for island in islands), self.cases)
        except LdmrtError:
            if not islands:
                raise
            return math.inf
        self.worst = self.worst or self.cases[each.index(max(each))]
        return max(each)

    def alone(self, path: str, islands: Collection[str]) -> float:
        """Return the error on the worst call where only this module is narrow, except for the islands in it.

        It is 0 where OpenVINO cannot run it like this: then the module may only become an island with those around it.
        """
        return self._alone(path, *islands) or 0.0

    def remaining(self, path: str) -> float:
        """Return the error on the worst call where every module is an island: of what OpenVINO leaves narrow."""
        return self._alone("nothing") or 0.0

    def gain(self, path: str, outer: str, islands: Collection[str]) -> float:
        """Return how much of the error of the module `outer` alone an island of a module within it takes away.

        What the island takes and gives is rounded where the modules beside it are narrow.
        """
        before, left = self._alone(outer, *islands), self._alone(outer, *islands, path)
        return 0.0 if before is None or left is None else before - left

    def _alone(self, path: str, *islands: str) -> float | None:
        """Return the error of `alone`; None where OpenVINO 2026.4 fails to join narrow and wide nodes."""
        key = path, *sorted(island for island in islands if inside(island, path))
        if key not in self.measured:
            assert self.worst is not None
            try:
                (self.measured[key],) = self._errors(
                    lambda one: not inside(one, path) or any(inside(one, island) for island in islands), [self.worst]
                )
            except LdmrtError:
                self.measured[key] = None
        return self.measured[key]

    def _errors(self, in_float32: Callable[[str], bool], cases: Sequence[Case]) -> list[float]:
        """Return the error of each call where the modules that `in_float32` names compute in float32."""
        path, specs = self.bundle.model(self.name), self.bundle.specs(self.name)
        engine = OpenVinoEngine(
            self.name,
            path,
            self.backend,
            compute=self.compute,
            in_float32=in_float32,
            ranges=self.ranges,
            specs=specs,
        )
        try:
            return [error(engine, [case]) for case in cases]
        finally:
            engine.close()


def islands_of(
    bundle: Bundle,
    reference: Recording,
    backend: str,
    compute: str,
    tables: Mapping[str, Ranges] = MappingProxyType({}),
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each component of which calls were recorded, with the islands that it needs on a backend of OpenVINO's.

    A component that no islands hold within its tolerance is one island as a whole, with the path "".

    Args:
        bundle: The opened bundle.
        reference: What the checkpoint computed.
        backend: A backend of OpenVINO's.
        compute: The narrow precision.
        tables: The ranges of activations in each component, for int8.
    """
    limits = tolerances(bundle, compute)
    for name in bundle.components:
        same = DECODER if name == DECODER_FP32 else name  # the reference is of float32
        if cases := [case for case in reference.cases if case.component == same]:
            limit = limits[name].limit
            ranges = tables[name].inputs if name in tables else None
            found = find_islands(InOpenVino(bundle, name, backend, compute, cases, ranges), {}, limit)
            whole = {"": f"error: {found.left:.2g} with the islands that help, of tolerance {limit:g}"}
            yield name, found.islands if found.left <= limit else whole
