"""Low memory: the networks of one stage at a time, text encoders, then U-Net with its controls, then autoencoder.

A preview decoder is tiny and runs between the rows of the U-Net, so it stays in memory with it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from threading import Condition
from typing import cast

from ldmrt.runtime.bundle.graphs import DECODER_PREVIEW, TOGETHER
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tensors import Array, Arrays, BindableEngine, Binding, Engine, Shapes, Specs

Maker = Callable[[], Engine]
Ends = tuple[Specs, Specs]  # inputs and outputs


class LowMemory:
    """Keeps one stage's networks in memory: text encoders, then the U-Net with its controls, then the autoencoder.

    Calls of one stage run at the same time; another stage waits for them.
    """

    def __init__(self) -> None:
        """Start without any network in memory."""
        self._stage, self._open = "", dict[str, Engine]()
        self._running, self._changed = 0, Condition()
        self._closed = False

    @contextmanager
    def using(self, name: str, make: Maker) -> Iterator[Engine]:
        """Yield the engine of a graph and keep it while the block runs.

        Engines of other stages are closed first. `make` opens the engine if it is not in memory.
        """
        stage = TOGETHER[0] if name.startswith((*TOGETHER, DECODER_PREVIEW)) else name
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
        """Free all networks, once no call runs; the next call opens them again."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running)
            self._free()

    def close(self) -> None:
        """Free all networks, and open none again."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._running)
            self._free()

    def _free(self) -> None:
        for engine in self._open.values():
            engine.close()
        self._open.clear()


class SharedEngine:
    """An engine that is in memory only while its stage runs."""

    def __init__(self, name: str, make: Maker, memory: LowMemory, specs: Ends | None) -> None:
        """Take inputs and outputs from `specs`, or from the engine itself where they are None, which opens it."""
        self._name, self._make, self._memory = name, make, memory
        if specs is None:
            with memory.using(name, make) as engine:
                specs = engine.inputs, engine.outputs
        self.inputs, self.outputs = specs

    def __call__(self, **arrays: Array) -> Arrays:
        """Open the engine where it is not in memory, and run it once."""
        with self._memory.using(self._name, self._make) as engine:
            return engine(**arrays)

    def bind(self, shapes: Shapes, feedback: Mapping[str, str], most: Collection[str] = ()) -> Binding:
        """Bind the engine itself, which must be one that can be bound."""
        with self._memory.using(self._name, self._make) as engine:
            return cast(BindableEngine, engine).bind(shapes, feedback, most)

    def free(self) -> None:
        """Free the networks in memory, until the next call."""
        self._memory.free()

    def close(self) -> None:
        """Close the networks in memory for good."""
        self._memory.close()


def in_low_memory(makers: Mapping[str, Maker], specs: Mapping[str, Ends]) -> dict[str, Maker]:
    """Make engines share memory: only those of one stage are open at a time.

    Args:
        makers: Opens each graph's engine.
        specs: Inputs and outputs of the graphs for which they are known without opening the engine.
    """
    memory = LowMemory()

    def shared(name: str, make: Maker) -> Maker:
        return lambda: SharedEngine(name, make, memory, specs.get(name))

    return {name: shared(name, make) for name, make in makers.items()}
