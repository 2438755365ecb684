"""Give a request engines whose calls are joined with those of other requests."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from threading import Lock

from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.bundle.graphs import STEP, state_of
from ldmrt.runtime.tensors import Array, Arrays, Engine

from .dispatcher import Dispatcher, Seat, alike
from .lanes import Lane

LaneOf = Callable[[tuple[int, ...]], Lane]


class JoinedEngines(LazyEngines):
    """The engines of a stage for one request.

    Calls of the networks that denoise are joined with those of other requests. The other networks take one request at
    a time, as their memory was predicted for one. The fused step is left out: requests that share a batch end at
    different rows.
    """

    def __init__(self, engines: LazyEngines, dispatcher: Dispatcher, lane_of: LaneOf, alone: Lock) -> None:
        """Take the engines of the stage.

        Args:
            engines: The stage's own, which several requests share.
            dispatcher: Runs the calls.
            lane_of: Returns the lane of latents of a height and width.
            alone: Held while a network runs whose calls are not joined.
        """
        self._dispatcher, self._lane_of, self._alone = dispatcher, lane_of, alone
        self._seat: Seat | None = None
        super().__init__({name: partial(self._shared, engines, name) for name in engines if name != STEP})

    def replaced(self, others: Mapping[str, Engine], without: Collection[str] = ()) -> LazyEngines:
        """Return these engines with others in the place of some, whose calls are joined likewise."""
        shared = LazyEngines({name: partial(self._shared, others, name) for name in others})
        return super().replaced(shared, without)

    def _shared(self, engines: Mapping[str, Engine], name: str) -> Engine:
        engine = engines[name]
        denoises = {state_of(engine.inputs), "timestep"} <= {spec.name for spec in engine.inputs}
        return SharedNetwork(engine, self._joined if denoises else self._by_itself)

    def _joined(self, engine: Engine, arrays: Arrays) -> Arrays:
        """Run a network with others' calls; the first call with latents of a size takes a seat in their lane."""
        lane = self._lane_of(arrays[state_of(engine.inputs)].shape[2:])
        if self._seat is None or self._seat.lane != lane:
            self.leave()
            self._seat = self._dispatcher.take_seat(lane)
        return self._seat.run(engine, arrays, alike(engine, arrays))

    def _by_itself(self, engine: Engine, arrays: Arrays) -> Arrays:
        """Run a network while no other that is not joined runs."""
        with self._alone:
            return engine(**arrays)

    def leave(self) -> None:
        """Give up the request's seat: its last row has run, or it has ended in an error."""
        if self._seat is not None:
            self._seat.leave()
            self._seat = None

    def close(self) -> None:
        """Give up the request's seat; the engines stay open for other requests."""
        self.leave()


class SharedNetwork:
    """A network whose calls go through what several requests share."""

    def __init__(self, engine: Engine, run: Callable[[Engine, Arrays], Arrays]) -> None:
        """Take the engine, and what runs it."""
        self._engine, self._run = engine, run
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def __call__(self, **arrays: Array) -> Arrays:
        """Run the network."""
        return self._run(self._engine, arrays)

    def close(self) -> None:
        """Do nothing: the engine is the pipeline's."""
