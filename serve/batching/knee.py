"""Choose how many rows a call has: so few that more of them would hardly be faster for each row."""

import time
from collections.abc import Callable, Iterator

import numpy as np

from ldmrt.runtime.tensors import Arrays, Engine, split_symbol

NEAR = 0.95  # of the best rate is enough: twice the rows for a twentieth more only let each request wait longer
LONGEST = 2.0  # seconds of a call after which no larger one is tried
# Calls of each number of rows, by turns; the fastest counts, as what else the machine does only makes calls slower.
ROUNDS = 3
TOKENS = 77  # of a prompt, where a network takes any number


def doubled(most: int) -> Iterator[int]:
    """Yield 1, 2, 4 and so on, and last `most`."""
    rows = 1
    while rows < most:
        yield rows
        rows *= 2
    yield most


def measure(run: Callable[[int], float], most: int) -> dict[int, float]:
    """Return the rows per second of calls of 1, 2, 4 and more rows, up to `most`.

    Args:
        run: Runs a call of so many rows and returns its seconds.
        most: The most rows that a call may have.
    """
    seconds = dict[int, float]()
    for rows in doubled(most):
        seconds[rows] = run(rows)
        if seconds[rows] > LONGEST:
            break
    for _ in range(ROUNDS - 1):
        for rows in seconds:
            seconds[rows] = min(seconds[rows], run(rows))
    return {rows: rows / taken for rows, taken in seconds.items()}


def knee(rates: dict[int, float]) -> int:
    """Return the fewest rows whose rate is near the best one."""
    best = max(rates.values())
    return min(rows for rows, rate in rates.items() if rate >= NEAR * best)


def timed(engine: Engine, side: int, factor: int) -> Callable[[int], float]:
    """Return what runs a network once with zeros for so many rows, and returns its seconds; the first run is not timed.

    Args:
        engine: The network.
        side: Of the images, in pixels.
        factor: Pixels along a side of a latent.
    """
    warm = set[int]()

    def run(rows: int) -> float:
        arrays = blank_inputs(engine, side, factor, rows)
        if rows not in warm:
            warm.add(rows)
            engine(**arrays)
        before = time.perf_counter()
        engine(**arrays)
        return time.perf_counter() - before

    return run


def blank_inputs(engine: Engine, side: int, factor: int, rows: int) -> Arrays:
    """Return inputs of a network whose values are all 0, whoever exported it: the first axis of each is of rows.

    ldmrt writes the sides of latents as "height/8", and optimum as "height" and other symbols for numbers of tokens.
    """

    def size(dim: int | str) -> int:
        if isinstance(dim, int):
            return dim
        name, divisor = split_symbol(dim)
        return side // (divisor if divisor > 1 else factor) if name in ("height", "width") else TOKENS

    return {spec.name: np.zeros((rows, *map(size, spec.shape[1:])), spec.dtype) for spec in engine.inputs}
