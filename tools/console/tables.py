"""Tables that fit the terminal, or 80 columns without one: cells wrap between words, names at their joints."""

import re
from collections.abc import Collection, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ldmrt.runtime.errors import printable

Cell = str | Text
# Between words, but for a number and its unit or the terms of a sum.
SPACE = re.compile(r"(?<=\s)(?!(?:[MG]B|dB|m?s|N|[-+]|\d+)(?:\s|$))")
# After a sign, inside "CamelCase", and between the sides of a shape.
JOINT = re.compile(r"(?<=[\s_./-])|(?<=[a-z])(?=[A-Z])|(?<=\d)(?=x\d)")


def show(
    titles: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    title: str | None = None,
    lines: bool = False,
    right: Collection[str] = (),
    stderr: bool = False,
) -> None:
    """Print a table.

    Args:
        titles: Titles of the columns.
        rows: Cells of each row, one per column.
        title: Title of the table.
        lines: Whether lines separate the rows.
        right: Titles of the columns that are aligned to the right, such as those of numbers.
        stderr: Whether to print on the standard error instead of the standard output.
    """
    console = Console(stderr=stderr)
    columns = list(zip(*([_plain(cell) for cell in row] for row in (titles, *rows)), strict=True))
    room = console.width - 3 * len(titles) - 1  # without the borders and the space around cells
    words, parts, whole = ([_longest(column, way) for column in columns] for way in (SPACE, JOINT, None))
    limits = widths(words, parts, whole, room)
    table = Table(title=title, show_lines=lines)
    for name, width in zip(titles, limits, strict=True):
        table.add_column(wrapped(name, width), width=width, justify="right" if name in right else "left", no_wrap=True)
    for row in rows:
        cells = zip(row, limits, strict=True)
        table.add_row(*(Text(wrapped(_plain(cell), width), style=_style(cell)) for cell, width in cells))
    console.print(table)


def widths(words: Sequence[int], parts: Sequence[int], whole: Sequence[int], room: int) -> list[int]:
    """Choose the widths of columns so that they fit into `room` characters.

    Names stay whole where they fit, and the widest columns are narrowed first. Spare room goes to the column that wraps
    most often.

    Args:
        words: Length of the longest word of each column.
        parts: Length of the longest part of a name of each column.
        whole: Length of the longest line of each column.
        room: Characters for all columns together.

    Returns:
        The width of each column, at least 1.
    """
    out = [max(1, word) for word in words]
    for i in sorted(range(len(out)), key=lambda i: -words[i]):
        if sum(out) > room:
            out[i] = max(1, parts[i], out[i] - (sum(out) - room))
    while sum(out) > max(room, len(out)):
        out[out.index(max(out))] -= 1
    while sum(out) < room and any(width < wish for width, wish in zip(out, whole, strict=True)):
        wishes = [wish / width for width, wish in zip(out, whole, strict=True)]
        out[wishes.index(max(wishes))] += 1
    return out


def wrapped(text: str, width: int) -> str:
    """Break text into lines of at most `width` characters: at spaces, else inside names, else anywhere."""
    lines = []
    for line in text.split("\n"):
        start = ""
        for piece in _pieces(line, width):
            if start and len((start + piece).rstrip()) > width:
                lines.append(start.rstrip())
                start = ""
            start += piece
        lines.append(start.rstrip())
    return "\n".join(lines)


def _pieces(line: str, width: int) -> Iterator[str]:
    """Split a line into pieces that are not broken: words, or parts of words that do not fit."""
    for word in SPACE.split(line):
        for part in [word] if len(word.rstrip()) <= width else JOINT.split(word):
            yield from (part[i : i + width] for i in range(0, max(1, len(part.rstrip())), width))


def _longest(cells: Sequence[str], joint: re.Pattern[str] | None) -> int:
    pieces = [
        piece for cell in cells for line in cell.split("\n") for piece in (joint.split(line) if joint else [line])
    ]
    return max(len(piece.rstrip()) for piece in pieces)


def _plain(cell: Cell) -> str:
    """Return the text of a cell with control characters escaped, as names in files may contain them."""
    text = cell if isinstance(cell, str) else cell.plain
    return "\n".join(map(printable, text.split("\n")))


def _style(cell: Cell) -> str:
    return "" if isinstance(cell, str) else str(cell.style)
