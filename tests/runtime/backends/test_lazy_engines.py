"""Engines are opened once, when they are asked for or soon before, and what goes wrong is told to whoever asks."""

from threading import Barrier, Event

import pytest
from numpy.typing import NDArray

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.backends.low_memory import in_low_memory

WAIT = 10  # seconds, for what takes none


class Quiet:
    """An engine that does nothing but count."""

    inputs = outputs = ()
    open = 0

    def __init__(self) -> None:
        Quiet.open += 1

    def __call__(self, **arrays: NDArray) -> dict[str, NDArray]:
        return {}

    def close(self) -> None:
        Quiet.open -= 1


@pytest.fixture(autouse=True)
def none_open() -> None:
    Quiet.open = 0


def test_opened_when_asked_for_and_once() -> None:
    engines = LazyEngines({"a": Quiet, "b": Quiet})
    assert list(engines) == ["a", "b"]
    assert Quiet.open == 0
    assert engines["a"] is engines["a"]
    assert Quiet.open == 1
    engines.close()
    assert Quiet.open == 0
    engines.close()  # once more
    with pytest.raises(LdmrtError, match="pipeline: it is closed"):
        engines["a"]
    engines.open_soon(["b"])
    assert Quiet.open == 0


def test_unloaded_engines_are_opened_again() -> None:
    """Also where low memory shares one place between networks."""
    engines = LazyEngines({**in_low_memory({"c": Quiet}, {"c": ((), ())}), "a": Quiet, "b": Quiet})
    for _ in range(2):
        assert {engines[name]() == {} for name in ("a", "c")} == {True}
        assert Quiet.open == 2
        engines.unload()
        assert Quiet.open == 0
    engines.close()
    engines.unload()
    with pytest.raises(LdmrtError, match="pipeline: it is closed"):
        engines["a"]


def test_soon_is_at_the_same_time() -> None:
    """Each waits for the other, and nobody has asked for either."""
    both, done = Barrier(2), Event()

    def make() -> Quiet:
        both.wait(WAIT)
        done.set()
        return Quiet()

    engines = LazyEngines({"a": make, "b": make, "c": Quiet})
    engines.open_soon(["a", "b", "unknown"])
    assert done.wait(WAIT)
    assert engines["a"] is not engines["b"]
    assert Quiet.open == 2
    engines.open_soon(["a", "c"])
    engines.close()
    assert Quiet.open == 0


def test_not_where_they_take_turns() -> None:
    engines = LazyEngines({"a": Quiet}, take_turns=True)
    engines.open_soon(["a"])
    assert Quiet.open == 0
    engines["a"]
    assert Quiet.open == 1
    engines.close()
    assert Quiet.open == 0


def test_what_goes_wrong_is_told_and_can_be_mended() -> None:
    broken = [True]

    def make() -> Quiet:
        if broken:
            raise LdmrtError("a", "broken")
        return Quiet()

    engines = LazyEngines({"a": make})
    for soon in ([], ["a"]):
        engines.open_soon(soon)
        with pytest.raises(LdmrtError, match="a: broken"):
            engines["a"]
    broken.clear()
    assert isinstance(engines["a"], Quiet)
    broken.append(True)
    other = LazyEngines({"a": make})
    other.open_soon(["a"])
    other.close()  # of one that did not open
