"""Tables that fit the terminal, or 80 columns where there is none: cells wrap between words, names at their joints."""

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
    titles: Sequence[str], rows: Sequence[Sequence[Cell]], *, title: str | None = None, lines: bool = False,
    right: Collection[str] = (), stderr: bool = False,
) -> None:  # fmt: skip
    """Print a table on the standard output, or on the standard error. Columns named in `right` are of numbers; `lines`
    stand between rows.
    """
    console = Console(stderr=stderr)
    columns = list(zip(*([_plain(cell) for cell in row] for row in (titles, *rows)), strict=True))
    room = console.width - 3 * len(titles) - 1  # of what stands between the cells
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
    """Return how wide columns are, in `room`, whose longest word, part of a name and line have so many characters.
    Names stay whole where there is room for them, the widest columns giving way first; what is left over goes to the
    column that wraps most often.
    """
    out = [max(1, one) for one in words]
    for i in sorted(range(len(out)), key=lambda i: -words[i]):
        if sum(out) > room:
            out[i] = max(1, parts[i], out[i] - (sum(out) - room))
    while sum(out) > max(room, len(out)):
        out[out.index(max(out))] -= 1
    while sum(out) < room and any(one < wish for one, wish in zip(out, whole, strict=True)):
        wishes = [wish / one for one, wish in zip(out, whole, strict=True)]
        out[wishes.index(max(wishes))] += 1
    return out


def wrapped(text: str, width: int) -> str:
    """Return the text in lines of at most `width` characters: between words, else between parts of a name, else cut."""
    lines = []
    for line in text.split("\n"):
        begun = ""
        for piece in _pieces(line, width):
            if begun and len((begun + piece).rstrip()) > width:
                lines.append(begun.rstrip())
                begun = ""
            begun += piece
        lines.append(begun.rstrip())
    return "\n".join(lines)


def _pieces(line: str, width: int) -> Iterator[str]:
    """Return what stays together: words, where they fit."""
    for word in SPACE.split(line):
        for part in [word] if len(word.rstrip()) <= width else JOINT.split(word):
            yield from (part[i : i + width] for i in range(0, max(1, len(part.rstrip())), width))


def _longest(cells: Sequence[str], joint: re.Pattern[str] | None) -> int:
    pieces = [
        piece for cell in cells for line in cell.split("\n") for piece in (joint.split(line) if joint else [line])
    ]
    return max(len(piece.rstrip()) for piece in pieces)


def _plain(cell: Cell) -> str:
    """The text of a cell, without what would move the cursor: names in files may hold anything."""
    text = cell if isinstance(cell, str) else cell.plain
    return "\n".join(map(printable, text.split("\n")))


def _style(cell: Cell) -> str:
    return "" if isinstance(cell, str) else str(cell.style)
