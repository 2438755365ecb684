"""The time that a narrow precision gains: of turns by turns, by the median, without the first."""

import pytest

from ldmrt.runtime.parity import time_gain
from ldmrt.runtime.parity.time_gain import LEAST, MOST, side_by_side


class Clock:
    """One that only calls move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls = 0.0, list[str]()
        monkeypatch.setattr(time_gain.time, "perf_counter", lambda: self.now)

    def call(self, name: str, *seconds: float) -> None:
        """Take the next of these seconds, and then always the last."""
        self.now += seconds[min(self.calls.count(name), len(seconds) - 1)]
        self.calls.append(name)


def test_a_ratio_is_that_of_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine slows both calls of a turn: here the third is ten times slower. The first opens networks."""
    clock = Clock(monkeypatch)
    seconds, ratio, turns = side_by_side(
        lambda: clock.call("narrow", 9.0, 1.0, 1.0, 10.0, 1.0), lambda: clock.call("exact", 30.0, 4.0, 4.0, 40.0, 4.0)
    )
    assert (seconds, ratio, turns) == (1.0, 0.25, LEAST)  # the time was up
    assert clock.calls[:6] == ["narrow", "exact", "exact", "narrow", "narrow", "exact"]  # each is first by turns


def test_fast_networks_are_called_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert side_by_side(lambda: clock.call("a", 0.01), lambda: clock.call("b", 0.01))[2] == MOST
