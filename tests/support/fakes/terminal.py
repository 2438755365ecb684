"""A terminal of few abilities: it reads what is written to it, and knows what is shown where."""

import base64
import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TOKEN = re.compile(
    r"\x1b_G(?P<kitty>[^\x1b]*)\x1b\\|\x1b\]1337;File=(?P<iterm2>[^\x07]*)\x07|\x1bP(?P<sixel>[^\x1b]*)\x1b\\"
    r"|\x1b\[(?P<codes>[0-9;]*)(?P<final>[A-Za-z])|\x1b(?P<short>[78])|(?P<text>[^\x1b])",
    re.DOTALL,
)
CUBE = (0, 95, 135, 175, 215, 255)
Pixels = NDArray[np.uint8]
Placed = tuple[int, int, dict[str, str], Pixels]  # line and column, what is said of the image, the image


class Terminal(io.StringIO):
    """Takes what a program writes; `read` shows it."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True

    def read_screen(self, lines: int = 40) -> "Shown":
        return Shown(self.getvalue(), lines)


class Shown:
    """What a terminal of so many lines shows in the end: lines of cells, and the images that were placed."""

    def __init__(self, written: str, lines: int) -> None:
        self.cells: dict[tuple[int, int], tuple[str, str, str]] = {}  # (line, column): character and both colours
        self.images: list[Placed] = []
        self.line, self.column, self.most, self.scrolled = 0, 0, lines, 0
        self.saved, self.colours, self.chunks = (0, 0), ("", ""), list[str]()
        place, self.about = 0, ""
        for token in TOKEN.finditer(written):
            assert token.start() == place, f"not understood: {written[place : place + 20]!r}"
            place = token.end()
            self._take(token)
        assert place == len(written)

    def text(self, line: int) -> str:
        """The text of a line, counted from the first that was ever written."""
        columns = [column for row, column in self.cells if row == line]
        return "".join(self.cells.get((line, at), (" ",))[0] for at in range(max(columns, default=-1) + 1))

    def pixels(self, line: int, columns: int, lines: int) -> Pixels:
        """The colours of half blocks, two pixels above one another in a cell."""
        rows = [[self.cells[line + row, at] for at in range(columns)] for row in range(lines)]
        assert {cell[0] for row in rows for cell in row} == {"\u2580"}
        both = [[[colour(cell[side]) for cell in row] for side in (1, 2)] for row in rows]
        return np.array(both, np.uint8).reshape(2 * lines, columns, 3)

    def _take(self, token: "re.Match[str]") -> None:
        if (text := token["text"]) is not None:
            self._write(text)
        elif token["kitty"] is not None:
            about, _, content = token["kitty"].partition(";")
            assert len(content) <= 4096
            self.chunks.append(content)
            self.about = self.about or about
            if "m=1" not in about.split(","):
                said = dict(part.split("=") for part in self.about.split(","))
                self.images.append((self.line, self.column, said, png("".join(self.chunks))))
                self.chunks, self.about = [], ""
        elif token["iterm2"] is not None:
            about, _, content = token["iterm2"].partition(":")
            said = dict(part.split("=") for part in about.split(";"))
            assert int(said["size"]) == len(base64.b64decode(content))
            self.images.append((self.line, self.column, said, png(content)))
            self.line += 3  # wherever it leaves the cursor
        elif token["sixel"] is not None:
            self.images.append((self.line, self.column, {}, of_sixels(token["sixel"])))
            self.line += 3
        elif token["short"] == "7":
            self.saved = self.line, self.column
        elif token["short"] == "8":
            self.line, self.column = self.saved
        else:
            self._control(token["codes"], token["final"])

    def _write(self, text: str) -> None:
        if text == "\n":
            self.line, self.column = self.line + 1, 0  # as terminals add the return
            self.scrolled = max(self.scrolled, self.line - self.most + 1)
        elif text == "\r":
            self.column = 0
        else:
            self.cells[self.line, self.column] = (text, *self.colours)
            self.column += 1

    def _control(self, codes: str, final: str) -> None:
        if final == "m":
            found = re.fullmatch(r"38;(2;\d+;\d+;\d+|5;\d+);48;(2;\d+;\d+;\d+|5;\d+)", codes)
            assert found or codes == "0"
            self.colours = (found[1], found[2]) if found else ("", "")
        elif final == "K":
            self.cells = {at: cell for at, cell in self.cells.items() if at[0] != self.line or at[1] < self.column}
        else:
            self.line += {"A": -1, "B": 1}[final] * int(codes)
            assert self.line >= self.scrolled, "it goes above the first line that can be seen"


def png(content: str) -> Pixels:
    """The image in base64."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content, validate=True))).convert("RGB"))


def colour(parameters: str) -> tuple[int, ...]:
    """Return the levels of a colour: of all, or of the 240 with fixed ones."""
    kind, *numbers = map(int, parameters.split(";"))
    if kind == 2:
        return tuple(numbers)
    number = numbers[0] - 16
    if number >= 216:
        return (8 + 10 * (number - 216),) * 3
    return CUBE[number // 36], CUBE[number // 6 % 6], CUBE[number % 6]


def of_sixels(content: str) -> Pixels:
    """Return the image that sixels draw, whose colours are percents; every pixel must be drawn once."""
    _, _, body = content.partition("q")
    size = re.match(r'"1;1;(\d+);(\d+)', body)
    assert size is not None
    width, height = int(size[1]), int(size[2])
    image, drawn = np.zeros((height + 6, width, 3)), np.zeros((height + 6, width), int)
    palette: dict[int, list[int]] = {}
    x = top = number = 0
    pattern = re.compile(r"#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)([?-~])|([?-~])|([$-])")
    rest = body[size.end() :]
    assert "".join(match[0] for match in pattern.finditer(rest)) == rest
    for match in pattern.finditer(rest):
        if match[1]:
            number = int(match[1])
            if match[2]:
                palette[number] = [int(match[place]) for place in (2, 3, 4)]
        elif match[8]:
            x, top = 0, top + (6 if match[8] == "-" else 0)
        else:
            count, bits = int(match[5] or 1), ord(match[6] or match[7]) - 63
            for row in range(6):
                if bits >> row & 1:
                    image[top + row, x : x + count] = palette[number]
                    drawn[top + row, x : x + count] += 1
            x += count
    assert (drawn[:height] == 1).all()
    assert not drawn[height:].any()
    return (image[:height] * 2.55).round().astype(np.uint8)
