"""As many models are in memory as fit; others take turns, and a model is replaced while it draws."""

from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ldmrt.runtime.pipeline.loras.loaded import Loras
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.serve.models import memory
from ldmrt.serve.models.models import TURN, Models


class Weighing:
    """Stands in for a pipeline whose weights have a size; it notes what is done to it."""

    def __init__(self, weights: int, size: int = 64) -> None:
        self.weights, self.stages, self.stage, self.noted = weights, (self,), SimpleNamespace(size=size), list[str]()
        self.loras = Loras()

    def unload(self) -> None:
        self.noted.append("unloaded")

    def close(self) -> None:
        self.noted.append("closed")


class Clock:
    """Tells the time that a test has set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 0.001  # so that no two events are at one time
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def models_of(clock: Clock, budget: float | None, **weights: int) -> Models:
    models = Models(budget, clock)
    for name, size in weights.items():
        models.put(name, cast(Pipeline, Weighing(size)), 8)
    return models


def loaded(models: Models) -> list[str]:
    return [name for name in models if models.is_loaded(name)]


def noted(models: Models, of: str | Pipeline) -> list[str]:
    """What was done to a model's pipeline, after the thread that frees memory has done it."""
    models._freeing.submit(int).result()
    pipeline: Any = models[of] if isinstance(of, str) else of
    return cast(list[str], pipeline.noted)


def test_models_that_fit_together_stay_loaded(clock: Clock) -> None:
    models = models_of(clock, 10, a=4, b=6)
    assert loaded(models) == []
    models.make_room(["a", "b"])
    assert loaded(models) == ["a", "b"]
    assert [noted(models, name) for name in "ab"] == [[], []]


def test_the_model_that_was_used_longest_ago_is_unloaded_first(clock: Clock) -> None:
    models = models_of(clock, 10, a=4, b=4, c=4, d=9)
    models.make_room(["a", "b"])
    for name in ("b", "a"):
        models.end(models.begin(models.model(name)))
    models.make_room(["c"])
    assert loaded(models) == ["a", "c"]
    models.make_room(["d"])  # needs the place of both
    assert loaded(models) == ["d"]
    assert [noted(models, name) for name in "abcd"] == [["unloaded"], ["unloaded"], ["unloaded"], []]


def test_a_model_that_is_used_is_not_unloaded(clock: Clock) -> None:
    """And an idle one is not either, where that would not make enough room."""
    models = models_of(clock, 10, a=6, b=4, c=9)
    models.make_room(["a", "b"])
    used = models.begin(models.model("a"))
    models.make_room(["c"])
    assert loaded(models) == ["a", "b"]
    assert not models.takes_requests("c")
    models.end(used)
    models.make_room(["c"])
    assert loaded(models) == ["c"]


def test_one_model_is_loaded_whatever_it_weighs(clock: Clock) -> None:
    models = models_of(clock, 10, a=99, b=1)
    models.make_room(["b"])
    models.make_room(["a"])
    assert loaded(models) == ["a"]


def test_all_are_loaded_where_the_memory_is_unknown(clock: Clock) -> None:
    models = models_of(clock, None, a=10**15, b=10**15)
    models.make_room(["a", "b"])
    assert loaded(models) == ["a", "b"]


def test_models_that_do_not_fit_together_take_turns(clock: Clock) -> None:
    """One that is loaded takes requests while another waits, but not for longer than its turn."""
    models = models_of(clock, 10, a=6, b=6)
    models.make_room(["a"])
    first = models.begin(models.model("a"))
    models.make_room(["b", "a"])
    assert [models.takes_requests(name) for name in "ab"] == [True, False]
    clock.now += TURN
    models.make_room(["b", "a"])
    assert [models.takes_requests(name) for name in "ab"] == [False, False]
    models.end(first)
    models.make_room(["b", "a"])
    assert [models.takes_requests(name) for name in "ab"] == [False, True]
    models.begin(models.model("b"))
    clock.now += TURN
    models.make_room(["b"])  # nobody waits for it
    assert models.takes_requests("b")


def test_of_several_that_wait_the_first_is_loaded(clock: Clock) -> None:
    models = models_of(clock, 10, a=6, b=6, c=1)
    models.make_room(["a"])
    used = models.begin(models.model("a"))
    models.make_room(["b", "c"])  # `c` would fit, but would take what `b` waits for
    assert loaded(models) == ["a"]
    models.end(used)
    models.make_room(["b", "c"])
    assert loaded(models) == ["b", "c"]


def test_a_model_that_is_asked_for_first_keeps_its_turn(clock: Clock) -> None:
    """Though nobody uses it yet; after its turn it makes room, so that no request waits for ever."""
    models = models_of(clock, 10, a=6, b=6)
    for _ in range(2):
        models.make_room(["a", "b"])
        assert [models.takes_requests(name) for name in "ab"] == [True, False]
    clock.now += TURN
    models.make_room(["a", "b"])
    assert [models.takes_requests(name) for name in "ab"] == [False, True]


def test_a_model_that_is_replaced(clock: Clock) -> None:
    """Requests that run keep the old pipeline, which is closed after the last of them; later ones get the new one."""
    models = models_of(clock, 10, a=6)
    old, new = models["a"], cast(Pipeline, Weighing(6, size=128))
    models.make_room(["a"])
    first, second = models.begin(models.model("a")), models.begin(models.model("a"))
    models.put("a", new)
    assert models["a"] is new
    assert (first.pipeline, first.replaced) == (old, True)
    models.make_room(["a"])
    assert not models.is_loaded("a")  # the old one is still in memory
    models.end(first)
    assert noted(models, old) == []
    models.end(second)
    assert noted(models, old) == ["closed"]
    models.make_room(["a"])
    assert models.is_loaded("a")
    assert models.model("a").rows == 2  # 8 rows of 64x64 are the pixels of 2 of 128x128


def test_a_model_that_is_idle_is_closed_when_it_is_replaced(clock: Clock) -> None:
    models = models_of(clock, 10, a=6)
    old = models["a"]
    new = cast(Pipeline, Weighing(6))
    models.put("a", new)
    assert noted(models, old) == ["closed"]
    models.close()
    assert cast(Any, new).noted == ["closed"]
    assert cast(Any, old).noted == ["closed"]


def test_memory_is_freed_beside_the_callers(clock: Clock) -> None:
    """Who asks for a model goes on at once; what draws with it waits until the memory is free."""
    may_free = Event()

    class Slow(Weighing):
        def unload(self) -> None:
            assert may_free.wait(30)
            super().unload()

    models = models_of(clock, 10, b=9)
    models.put("a", cast(Pipeline, Slow(9)))
    for name in "aba":
        models.make_room([name])
    rooms = [models.model(name).room for name in "ba"]
    assert [room is not None and room.done() for room in rooms] == [False, False]
    assert loaded(models) == ["a"]
    may_free.set()
    assert [noted(models, name) for name in "ab"] == [["unloaded"], ["unloaded"]]
    assert [room is not None and room.done() for room in rooms] == [True, True]


@pytest.mark.parametrize(
    ("backend", "machine", "device", "budget"),
    [
        ("onnxruntime", 8, 4, 4), ("openvino", 8, None, 4), ("onnxruntime-cuda", 8, 4, 2), ("tensorrt", 8, None, None),
        ("auto", 8, 4, 2), ("auto", 8, None, 4), ("auto", None, None, None),
    ],
)  # fmt: skip
def test_the_memory_for_weights(
    monkeypatch: pytest.MonkeyPatch, backend: str, machine: int | None, device: int | None, budget: float | None
) -> None:
    """It is half of what is free where the backend runs: on the GPU, on the machine, or on the smaller of both."""
    monkeypatch.setattr("ldmrt.runtime.host.free_memory", lambda: machine)
    monkeypatch.setattr("ldmrt.runtime.backends.gpu.free_memory", lambda: device)
    assert memory.for_weights(backend) == budget
