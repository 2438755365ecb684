"""Standard output and error that end no command: not by a reader who leaves, and not by a narrow encoding."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


class _Pipe(io.FileIO):
    """Writes to a file descriptor; what is written after the reader has left, as `head` does, goes nowhere."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            to_nowhere(self.fileno())
            if not isinstance(error, BrokenPipeError):  # a full disk: said once
                error.filename = "standard output"
                raise
            return memoryview(data).nbytes


def to_nowhere(descriptor: int) -> None:
    """Have all that is written to this descriptor discarded from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextlib.contextmanager
def steady() -> Iterator[None]:
    """Make the standard streams such while the block runs. What their encoding lacks is written as an escape, and the
    command goes on to its end when nobody reads any more: its files and its exit code matter still.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_steady, before)
    try:
        yield
    finally:
        after = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = before
        for stream in after:
            if stream is not None:
                stream.flush()


def _steady(stream: Any) -> Any:
    """Return the same stream; another over the same descriptor where that is a real one."""
    if type(stream) is not io.TextIOWrapper:  # a test's, a notebook's, or none
        return stream
    stream.flush()
    raw = io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(raw, stream.encoding, errors="backslashreplace", line_buffering=stream.line_buffering)
