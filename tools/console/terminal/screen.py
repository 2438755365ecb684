"""Show frames in one place of a terminal, each over the one before, with a line of text below."""

import os
import struct
from collections.abc import Mapping
from typing import TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import encoders
from .protocols import BLOCKS, ITERM2, KITTY, protocol_of, truecolor

MOST_LINES, BELOW = 24, 2  # of an image; lines of the terminal that it leaves free
WINDOW = 80, 24  # columns and lines of a terminal that does not tell
CELL = 8, 16  # width and height of a character in pixels, where the terminal does not tell


class Screen:
    """Writes frames to a terminal. The first one makes room, and each later one goes over the one before."""

    def __init__(self, stream: TextIO, protocol: str, *, every_colour: bool = True) -> None:
        """Write to a stream in one of `protocols.PROTOCOLS`; half blocks in all colours, or in 240."""
        self._stream, self._protocol, self._every_colour = stream, protocol, every_colour
        self._size: tuple[int, int] | None = None  # columns and lines of the first frame, which all others have

    @classmethod
    def of(cls, stream: TextIO, environment: Mapping[str, str], wanted: str) -> "Screen | None":
        """Open a stream as a screen, by a protocol or "auto"; None where it is no terminal that shows images."""
        protocol = protocol_of(stream, environment, wanted)
        return None if protocol is None else cls(stream, protocol, every_colour=truecolor(environment))

    def show(self, image: NDArray[np.uint8], text: str) -> None:
        """Show an image (H, W, 3), scaled to the first one's size, and a line of text; wider text is cut off."""
        window, cell = window_of(self._stream)
        if self._size is None:
            columns, lines = self._size = fit(image.shape[:2], window, cell)
            place = "\n" * (lines + 1) + f"\x1b[{lines + 1}A"  # scrolls where the terminal ends
        else:
            columns, lines = self._size
            place = f"\r\x1b[{lines + 1}A"
        below = f"\x1b[{lines}B\r\x1b[K{text[: window[0] - 1]}\n"
        self._stream.write(f"{place}\x1b7{self._encoded(image, columns, lines, cell)}\x1b8{below}")
        self._stream.flush()

    def _encoded(self, image: NDArray[np.uint8], columns: int, lines: int, cell: tuple[int, int]) -> str:
        """Write an image over so many cells; where the cursor is then does not matter."""
        if self._protocol == BLOCKS:
            rows = encoders.blocks(resized(image, columns, 2 * lines), every_colour=self._every_colour)
            return "\r\n".join(rows)
        width, height = columns * cell[0], lines * cell[1]
        if self._protocol not in (KITTY, ITERM2):
            return encoders.sixel(resized(image, width, height))
        if image.shape[0] > height or image.shape[1] > width:  # the terminal enlarges, and need not be sent more
            image = resized(image, width, height)
        return (encoders.kitty if self._protocol == KITTY else encoders.iterm2)(image, columns, lines)


def resized(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) in another size, its pixels averaged or repeated."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def fit(size: tuple[int, ...], window: tuple[int, int], cell: tuple[int, int]) -> tuple[int, int]:
    """Return how many columns and lines an image takes in a window of columns and lines.

    Args:
        size: Height and width of the image in pixels.
        window: Columns and lines of the terminal.
        cell: Width and height of a character in pixels.
    """
    most = max(1, window[0] - 1), max(1, min(MOST_LINES, window[1] - BELOW))
    wide = size[1] / size[0] * cell[1] / cell[0]  # columns a line
    lines = min(most[1], most[0] / wide)
    return max(1, min(most[0], round(lines * wide))), max(1, int(lines))


def window_of(stream: TextIO) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return columns and lines of a terminal, and width and height of its characters in pixels."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):  # io.UnsupportedOperation is both
        return WINDOW, CELL
    window = (size.columns or WINDOW[0], size.lines or WINDOW[1])
    return window, _cell_of(stream.fileno())


def _cell_of(descriptor: int) -> tuple[int, int]:
    """Ask for the size of a character; what a terminal does not tell is `CELL`."""
    try:
        import fcntl
        import termios

        size = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8))
    except (ImportError, OSError):
        return CELL
    lines, columns, width, height = struct.unpack("HHHH", size)
    if not (lines and columns and width >= columns and height >= lines):
        return CELL
    return width // columns, height // lines
