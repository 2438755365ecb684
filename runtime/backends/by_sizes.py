"""Networks of one graph that are each opened for one set of sizes, kept while they are used.

With fixed sizes nothing is left to plan while a network runs: a GPU replays it, and OpenVINO runs it faster. But each
network holds the weights anew, so few stay open.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Generic, TypeVar

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tensors import Shapes, Specs

Opened = TypeVar("Opened")
Sizes = Mapping[str, int]  # of every symbolic dimension: 2 of "batch", 64 of "height/8"
Key = tuple[tuple[str, int], ...] | None  # None is any sizes
MOST = 2  # networks that stay open


def sizes_in(specs: Specs, shapes: Shapes) -> dict[str, int]:
    """Return the size of every symbolic dimension of inputs that have these shapes."""
    return {
        dim: size
        for spec in specs
        for dim, size in zip(spec.shape, shapes[spec.name], strict=True)
        if isinstance(dim, str)
    }


class BySizes(Generic[Opened]):
    """Opens the networks of a graph when sizes are worth one, and keeps those that were used last.

    Several threads may share it. A network that another takes the place of is only forgotten, as a call may still run.
    """

    def __init__(
        self,
        component: str,
        open_for: Callable[[Sizes | None], Opened],
        *,
        after: int | None = 1,
        at_first: bool = False,
        most: int | None = None,
        freeing: AbstractContextManager[object] | None = None,
    ) -> None:
        """Hold what opens a network; none is opened yet.

        Args:
            component: The component that errors name.
            open_for: Opens a network for these sizes alone, or for any where it gets None.
            after: Sizes are worth a network when they are asked for this often in a row; until then the one for any
                sizes runs them. None: they never are.
            at_first: The sizes that are asked for first are worth a network in any case.
            most: How many networks stay open; `MOST` by default.
            freeing: A lock that is held while a network is freed.
        """
        self.component, self._open_for, self._after, self._at_first = component, open_for, after, at_first
        self._most = MOST if most is None else most
        self._freeing = nullcontext() if freeing is None else freeing
        self._opened: dict[Key, Opened] = {}  # the one that was used last is last
        self._last, self._times = _key(None), 0  # how often the last sizes were asked for in a row
        self._changing, self._closed = Lock(), False

    def add(self, sizes: Sizes | None, network: Opened) -> None:
        """Keep a network that is open already, for these sizes or for any."""
        with self._changing:
            self._opened[_key(sizes)] = network

    def of(self, sizes: Sizes) -> Opened:
        """Return the network that is to run these sizes.

        Raises:
            LdmrtError: The networks were closed.
        """
        key = _key(sizes)
        with self._changing:
            if self._closed:
                raise LdmrtError(self.component, "its pipeline is closed", hint="open the bundle again")
            self._last, self._times = key, self._times + 1 if key == self._last else 1
            first, self._at_first = self._at_first, False
            worth = first or key in self._opened or (self._after is not None and self._times >= self._after)
            key = key if worth else None
            network = self._opened.pop(key) if key in self._opened else self._open(key)
            self._opened[key] = network
            return network

    def _open(self, key: Key) -> Opened:
        """Open a network, after those in whose place it comes are forgotten."""
        while len(self._opened) >= self._most:
            with self._freeing:
                del self._opened[next(iter(self._opened))]
        return self._open_for(None if key is None else dict(key))

    def close(self) -> list[Opened]:
        """Forget all networks, and return them; none is opened again."""
        with self._changing:
            self._closed = True
            opened = [*self._opened.values()]
            self._opened.clear()
            return opened


def _key(sizes: Sizes | None) -> Key:
    return tuple(sorted(sizes.items())) if sizes else None
