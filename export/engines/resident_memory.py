"""Measures how much memory a block of code adds to this process, on Linux.

It samples often, because the system keeps only one peak for the whole process.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

EVERY = 0.01  # seconds between two looks
STATM = Path("/proc/self/statm")


class Growth:
    """Counts the bytes that were resident beyond those of the beginning, at most; None where that is unknown."""

    def __init__(self) -> None:
        """Start at what is resident now."""
        self._begin = resident()
        self._most = self._begin

    def look(self) -> None:
        """Look once at what is resident."""
        if self._most is not None:
            self._most = max(self._most, resident() or 0)

    @property
    def most(self) -> int | None:
        """Return the growth so far."""
        return None if self._most is None or self._begin is None else self._most - self._begin


@contextlib.contextmanager
def growth() -> Iterator[Growth]:
    """Measure the growth of a block; what was freed before it is given back first."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    made, done = Growth(), threading.Event()

    def looking() -> None:
        while not done.wait(EVERY):
            made.look()

    thread = threading.Thread(target=looking, name="memory", daemon=True)
    thread.start()
    try:
        yield made
    finally:
        done.set()
        thread.join()
        made.look()


def resident() -> int | None:
    """Return how many bytes of this process are in memory now."""
    try:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
