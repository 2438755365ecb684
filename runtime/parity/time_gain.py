"""Measures what a narrow precision gains in time: beside float32, by turns, on the machine that it is verified on."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from ldmrt.runtime.bundle.certificate import TimeGain
from ldmrt.runtime.bundle.recording import Trajectory
from ldmrt.runtime.pipeline.pipeline import Pipeline

from .compare import Comparison, requested

LEAST, MOST, SECONDS = 5, 41, 10.0  # calls of each, and the time that more than the least may take
NAMES = {"a row": "time of a row", "decoding": "time of decoding"}  # of a `TimeGain`, and of its comparison


def time_gains(narrow: Pipeline, exact: Pipeline, backend: str, trajectory: Trajectory) -> Iterator[Comparison]:
    """Time a row in the middle, and the decoding, on the recorded latents.

    Args:
        narrow: A pipeline that computes in a narrow precision.
        exact: The same in float32. Both hold their networks in memory at a time.
        backend: The first one's name in a certificate.
        trajectory: Of the reference.
    """
    narrow, exact = replace(narrow, later=()), replace(exact, later=())  # a stage of a cascade is measured alone
    for what, ways in {"a row": (_row(narrow, trajectory), _row(exact, trajectory)),
                       "decoding": (_decoding(narrow, trajectory), _decoding(exact, trajectory))}.items():  # fmt: skip
        seconds, ratio, calls = side_by_side(*ways)
        gain = TimeGain(backend, what, seconds, ratio, calls)
        yield Comparison(NAMES[what], backend, times=(gain,))


def side_by_side(first: Callable[[], object], other: Callable[[], object]) -> tuple[float, float, int]:
    """Call two functions by turns, each first as often as the other.

    Returns:
        The median seconds of the first, the median of the turns' ratios of it to the other, and the number of turns.
        What opens at the first call, a turn before, is not measured.
    """
    first(), other()
    turns: list[tuple[float, float]] = []
    begin = time.perf_counter()
    while len(turns) < LEAST or (len(turns) < MOST and time.perf_counter() - begin < SECONDS):
        if len(turns) % 2:
            turns.append((_seconds(first), _seconds(other)))
        else:
            after = _seconds(other)
            turns.append((_seconds(first), after))
    return statistics.median(one for one, _ in turns), statistics.median(a / b for a, b in turns), len(turns)


def _seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _row(pipeline: Pipeline, trajectory: Trajectory) -> Callable[[], object]:
    """Return a call of the guided network on the latents before the row in the middle."""
    row = len(trajectory.said) // 2
    return partial(pipeline.prepare(requested(trajectory)).model, trajectory.x[row], float(trajectory.t[row]))


def _decoding(pipeline: Pipeline, trajectory: Trajectory) -> Callable[[], object]:
    """Return a call of the decoder on the last latents."""
    return partial(pipeline.decode, trajectory.x[-1])
