"""Low memory: the networks of one stage at a time, text encoders, then U-Net with its controls, then autoencoder."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from numpy.typing import NDArray

from .specs import Engine, Shapes, TensorSpec

Maker = Callable[[], Engine]
Specs = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]  # inputs and outputs
TOGETHER = ("unet", "controlnet", "adapter")  # called row by row, by their names; any other is a stage of its own


class Turns:
    """Who is in memory."""

    def __init__(self) -> None:
        self._stage, self._open = "", dict[str, Engine]()

    def call(self, name: str, make: Maker) -> Engine:
        """The engine, opened if it is not; those of other stages are closed first."""
        stage = TOGETHER[0] if name.startswith(TOGETHER) else name
        if stage != self._stage:
            self.close()
            self._stage = stage
        if name not in self._open:
            self._open[name] = make()
        return self._open[name]

    def close(self) -> None:
        """Free all."""
        for engine in self._open.values():
            engine.close()
        self._open.clear()


class Visitor:
    """An engine that is in memory only while its stage runs. `specs` are asked of the engine itself where left out."""

    def __init__(self, name: str, make: Maker, turns: Turns, specs: Specs | None) -> None:
        self._name, self._make, self._turns = name, make, turns
        if specs is None:
            engine = turns.call(name, make)
            specs = engine.inputs, engine.outputs
        self.inputs, self.outputs = specs

    def __call__(self, **arrays: NDArray) -> dict[str, NDArray]:
        """Run once."""
        return self._turns.call(self._name, self._make)(**arrays)

    def bind(self, shapes: Shapes, feedback: Mapping[str, str], most: Collection[str] = ()) -> Any:
        """What the engine itself gives."""
        return cast(Any, self._turns.call(self._name, self._make)).bind(shapes, feedback, most)

    def close(self) -> None:
        """Free whoever is in memory."""
        self._turns.close()


def by_turns(makers: Mapping[str, Maker], specs: Mapping[str, Specs]) -> dict[str, Maker]:
    """Makers of engines that take turns. `specs` are of those whose inputs and outputs are known without opening."""
    turns = Turns()

    def visitor(name: str, make: Maker) -> Maker:
        return lambda: Visitor(name, make, turns, specs.get(name))

    return {name: visitor(name, make) for name, make in makers.items()}
