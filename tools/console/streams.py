"""Make standard output and error survive a reader that leaves, such as `head`, and a narrow encoding."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Pipe(io.FileIO):
    """A file descriptor that discards all further output once its reader has left, as `head` does."""

    def write(self, data: "ReadableBuffer") -> int:
        """Write, and return the number of bytes; raise an `OSError` once where a disk is full."""
        try:
            return super().write(data) or 0
        except OSError as error:
            to_nowhere(self.fileno())
            if not isinstance(error, BrokenPipeError):  # a full disk: reported once
                error.filename = "standard output"
                raise
            return memoryview(data).nbytes


def to_nowhere(descriptor: int) -> None:
    """Discard all that is written to this descriptor from now on."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


@contextlib.contextmanager
def steady() -> Iterator[None]:
    """Replace the standard streams while the block runs.

    Characters that their encoding lacks are written as escapes. When nobody reads any more, the command still runs to
    its end: its files and its exit code matter.
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


def _steady(stream: TextIO | None) -> TextIO | None:
    """Return a steady stream over the same descriptor, or the stream itself where it is not a real one."""
    if type(stream) is not io.TextIOWrapper:  # of a test or a notebook, or no stream at all
        return stream
    stream.flush()
    raw = io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(raw, stream.encoding, errors="backslashreplace", line_buffering=stream.line_buffering)
