"""Keep several models: as many in memory as fit, each replaced while requests are drawn with it.

A pipeline that is open takes hardly any memory: its networks are opened by the first request that needs them. A model
is loaded from then on, until it is unloaded for another one, or closed. Memory is freed in a thread of its own, as that
may take a while: who draws with a model waits for it, and nobody else.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ldmrt.runtime.pipeline.loras.loaded import KEPT
from ldmrt.runtime.pipeline.pipeline import Pipeline

# Seconds for which a model that was loaded takes requests though another waits for its memory: so opening networks,
# which takes seconds, stays a small part of the time where models that do not fit together are asked for by turns.
TURN = 10.0


@dataclass(eq=False)
class Model:
    """A model as requests are drawn with it, from its opening until it is replaced.

    Attributes:
        pipeline: Draws the requests.
        rows: How many rows a call of its U-Net has at most, at the model's own size; see `rows_per_call`.
        users: How many requests, and previews of them, are drawn with it.
        loaded: Since when its networks may be in memory; None where they are not.
        room: Ends when the memory for its networks is free; None before it is loaded.
        used: When a request last began or ended.
        replaced: Whether requests that begin now are drawn with another pipeline of this name.
    """

    pipeline: Pipeline
    rows: int
    users: int = 0
    loaded: float | None = None
    room: "Future[None] | None" = None
    used: float = 0.0
    replaced: bool = False

    @property
    def weights(self) -> int:
        """The bytes of the weights of all its networks, and at most those of the same ones as LoRAs change them.

        LoRAs take a session of each network, and the weights of the sets that are kept.
        """
        return sum(stage.weights * (2 + KEPT if stage.loras.names else 1) for stage in self.pipeline.stages)


class Models(Mapping[str, Pipeline]):
    """Holds the pipelines of a service by name, and decides which of them are in memory.

    Its callers hold a lock where they call a method that changes it.
    """

    def __init__(self, budget: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without models.

        Args:
            budget: How many bytes the weights of all loaded models may take; None for any number. One model is loaded
                whatever it takes.
            clock: Tells the time in seconds.
        """
        self._models, self._budget, self._clock = dict[str, Model](), budget, clock
        self._kept = list[Model]()  # all that are not closed, those that were replaced too
        self._wanted: Model | None = None  # has to wait for memory that others use
        self._freeing = ThreadPoolExecutor(1, "freeing")  # in the order in which it is asked for

    def __getitem__(self, name: str) -> Pipeline:
        """Return the pipeline that requests are drawn with."""
        return self._models[name].pipeline

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names; the first is the default."""
        return iter(self._models)

    def __len__(self) -> int:
        """Return the number of models."""
        return len(self._models)

    def put(self, name: str, pipeline: Pipeline, rows: int | None = None) -> None:
        """Add a model, or replace the pipeline of one: the old one is closed when its last request has ended.

        Args:
            name: The model's name.
            pipeline: The pipeline, which is closed with the models.
            rows: How many rows a call has at most; by default as many pixels as a call of the model that is replaced.
        """
        before = self._models.get(name)
        if rows is None:
            rows = 1 if before is None else as_many_pixels(before, pipeline)
        self._models[name] = model = Model(pipeline, rows)
        self._kept.append(model)
        if before is not None:
            before.replaced = True
            self._close_replaced()

    def is_loaded(self, name: str) -> bool:
        """Tell whether a model's networks may be in memory."""
        return self._models[name].loaded is not None

    def model(self, name: str) -> Model:
        """Return the model that requests of a name are drawn with from now on."""
        return self._models[name]

    def make_room(self, names: Iterable[str]) -> None:
        """Load the models that are asked for, in this order; the first that has to wait for memory ends it.

        Those that no request is drawn with are unloaded for it, the one that was used longest ago first; but not one
        that is asked for earlier and whose turn is not over.
        """
        self._wanted, first = None, list[Model]()
        for name in names:
            model = self._models[name]
            if model.loaded is None and not self._load(model, [one for one in first if self._has_its_turn(one)]):
                self._wanted = model
                return
            first.append(model)

    def takes_requests(self, name: str) -> bool:
        """Tell whether a request of a model may begin now.

        The model has to be loaded; where another waits for memory it takes requests for `TURN` from its loading on.
        """
        model = self._models[name]
        return model.loaded is not None and (self._wanted is None or self._has_its_turn(model))

    def begin(self, model: Model) -> Model:
        """Note that a model is used, for a request or a preview, and return it; `end` has to follow."""
        model.users += 1
        model.used = self._clock()
        return model

    def end(self, model: Model) -> None:
        """Note that a use has ended; the pipeline of a model that was replaced is closed after the last one."""
        model.users -= 1
        model.used = self._clock()
        self._close_replaced()

    def close(self) -> None:
        """Close all pipelines; no request may be drawn with them."""
        self._freeing.shutdown()
        for model in self._kept:
            model.pipeline.close()
        self._kept.clear()

    def _has_its_turn(self, model: Model) -> bool:
        """Tell whether a model was loaded less than `TURN` ago."""
        return model.loaded is not None and self._clock() - model.loaded < TURN

    def _load(self, model: Model, kept: Collection[Model]) -> bool:
        """Load a model if there is room for it, or can be made without unloading some; returns whether there is."""
        loaded = [other for other in self._kept if other.loaded is not None]
        budget = float("inf") if self._budget is None else self._budget
        over = model.weights + sum(other.weights for other in loaded) - budget
        idle = [other for other in loaded if not other.users and other not in kept]
        idle.sort(key=lambda other: other.used)
        unloaded = list[Model]()
        while idle and over > 0:
            unloaded.append(idle.pop(0))
            over -= unloaded[-1].weights
        if over > 0 and len(unloaded) < len(loaded):
            return False
        for other in unloaded:
            other.loaded = None
        model.loaded, model.room = self._clock(), self._freeing.submit(_unload, [one.pipeline for one in unloaded])
        return True

    def _close_replaced(self) -> None:
        """Close the pipelines that were replaced and draw no request any more."""
        for model in [model for model in self._kept if model.replaced and not model.users]:
            self._kept.remove(model)
            self._freeing.submit(model.pipeline.close)


def _unload(pipelines: Iterable[Pipeline]) -> None:
    """Free the memory of networks."""
    for pipeline in pipelines:
        pipeline.unload()


def as_many_pixels(before: Model, pipeline: Pipeline) -> int:
    """Return the rows, at another pipeline's own size, that have as many pixels as the rows of a model at its own."""
    return max(1, before.rows * before.pipeline.stage.size**2 // pipeline.stage.size**2)


def fixed(pipelines: Mapping[str, Pipeline], rows: Mapping[str, int]) -> Models:
    """Return models that are all loaded together, whatever memory they take.

    Args:
        pipelines: By name; the first is the default.
        rows: How many rows a call of each has at most, at its own size.
    """
    models = Models()
    for name, pipeline in pipelines.items():
        models.put(name, pipeline, rows[name])
    return models
