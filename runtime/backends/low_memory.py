"""Low memory: the networks of one stage at a time, text encoders, then U-Net with its controls, then autoencoder."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from threading import Condition
from typing import Any, cast

from numpy.typing import NDArray

from ldmrt.runtime.bundle.graphs import TOGETHER
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tensors import Engine, Shapes, Specs

Maker = Callable[[], Engine]
Ends = tuple[Specs, Specs]  # inputs and outputs


class LowMemory:
    """Keeps one stage's networks in memory. Calls of one stage run at the same time; another stage waits for them."""

    def __init__(self) -> None:
        self._stage, self._open = "", dict[str, Engine]()
        self._running, self._changed = 0, Condition()
        self._closed = False

    @contextmanager
    def using(self, name: str, make: Maker) -> Iterator[Engine]:
        """The engine, opened if it is not, and kept while it is used; those of other stages are closed first."""
        stage = TOGETHER[0] if name.startswith(TOGETHER) else name
        with self._changed:
            self._changed.wait_for(lambda: stage == self._stage or not self._running)
            if self._closed:
                raise LdmrtError(name, "its pipeline is closed", hint="open the bundle again")
            if stage != self._stage:
                self._free()
                self._stage = stage
            if name not in self._open:
                self._open[name] = make()
            engine = self._open[name]
            self._running += 1
        try:
            yield engine
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def free(self) -> None:
        """Free all, once no call runs; they are opened again when they are called."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running)
            self._free()

    def close(self) -> None:
        """Free all, and open none again."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._running)
            self._free()

    def _free(self) -> None:
        for engine in self._open.values():
            engine.close()
        self._open.clear()


class SharedEngine:
    """An engine that is in memory only while its stage runs. `specs` are asked of the engine itself where left out."""

    def __init__(self, name: str, make: Maker, turns: LowMemory, specs: Ends | None) -> None:
        self._name, self._make, self._turns = name, make, turns
        if specs is None:
            with turns.using(name, make) as engine:
                specs = engine.inputs, engine.outputs
        self.inputs, self.outputs = specs

    def __call__(self, **arrays: NDArray) -> dict[str, NDArray]:
        """Open the engine where it is not in memory, and run it once."""
        with self._turns.using(self._name, self._make) as engine:
            return engine(**arrays)

    def bind(self, shapes: Shapes, feedback: Mapping[str, str], most: Collection[str] = ()) -> Any:
        """Bind the engine itself."""
        with self._turns.using(self._name, self._make) as engine:
            return cast(Any, engine).bind(shapes, feedback, most)

    def free(self) -> None:
        """Free whoever is in memory, until it is called again."""
        self._turns.free()

    def close(self) -> None:
        """Close the engine that is in memory."""
        self._turns.close()


def in_low_memory(makers: Mapping[str, Maker], specs: Mapping[str, Ends]) -> dict[str, Maker]:
    """Makers of engines that take turns. `specs` are of those whose inputs and outputs are known without opening."""
    turns = LowMemory()

    def visitor(name: str, make: Maker) -> Maker:
        return lambda: SharedEngine(name, make, turns, specs.get(name))

    return {name: visitor(name, make) for name, make in makers.items()}
