"""Write an image in a terminal's protocol: kitty's, iTerm2's, sixels, or half blocks of two colours.

Sources: https://sw.kovidgoyal.net/kitty/graphics-protocol, https://iterm2.com/documentation-images.html, and for sixels
the VT330's manual (Digital Equipment Corporation 1988, EK-VT3XX-GP-002, chapter 14).
"""

import base64
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmrt.runtime.images.png import encode_png

from .protocols import HALF

Pixels = NDArray[np.uint8]
CHUNK = 4096  # bytes of base64 in one of kitty's commands
NUMBER = 7801  # by which kitty knows the image, so that the next frame takes its place
BAND = 6  # pixels above one another in one sixel
EMPTY, REPEATED = "?", re.compile(r"(.)\1{3,}")  # a sixel without pixels; one that stands at least four times
COLOURS = 256  # of a sixel image
SAMPLED = 96  # pixels along a side of which these colours are chosen: of all it takes ten times as long
CUBE = (0, 95, 135, 175, 215, 255)  # levels of the 6 x 6 x 6 colours from number 16 on, of 256
GREYS = range(8, 248, 10)  # levels of the greys from number 232 on


def kitty(image: Pixels, columns: int, lines: int) -> str:
    """Write an image (H, W, 3) in kitty's protocol, over so many cells; the cursor stays where it is."""
    content = base64.standard_b64encode(encode_png(image)).decode()
    parts = [content[start : start + CHUNK] for start in range(0, len(content), CHUNK)]
    about = f"a=T,f=100,q=2,C=1,i={NUMBER},p=1,c={columns},r={lines},"
    commands = []
    for number, part in enumerate(parts, start=1):
        commands.append(f"\x1b_G{about}m={int(number < len(parts))};{part}\x1b\\")
        about = "q=2,"
    return "".join(commands)


def iterm2(image: Pixels, columns: int, lines: int) -> str:
    """Write an image (H, W, 3) in iTerm2's protocol, over so many cells."""
    file = encode_png(image)
    size = f"size={len(file)};width={columns};height={lines};preserveAspectRatio=0"
    return f"\x1b]1337;File=inline=1;{size}:{base64.standard_b64encode(file).decode()}\x07"


def sixel(image: Pixels) -> str:
    """Write an image (H, W, 3) as sixels of at most 256 colours, one for each pixel of the terminal.

    Colours are in percent, so a level may be off by 1.3 of 255 beside what fewer colours cost.
    """
    height, width = image.shape[:2]
    plain, step = Image.Dither.NONE, max(1, *(side // SAMPLED for side in (height, width)))
    palette_of = Image.fromarray(np.ascontiguousarray(image[::step, ::step]))
    chosen = palette_of.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=plain)
    reduced = Image.fromarray(image).quantize(palette=chosen, dither=plain)
    numbers = np.asarray(reduced)
    palette = np.array(reduced.getpalette(), np.int64).reshape(-1, 3)
    percent = (palette * 100 + 127) // 255
    used = np.unique(numbers).tolist()
    colours = "".join("#{};2;{};{};{}".format(number, *percent[number]) for number in used)
    bands = []
    for top in range(0, height, BAND):
        band = numbers[top : top + BAND]
        weights = 1 << np.arange(len(band))[:, None]
        rows = [f"#{number}{_repeated(((band == number) * weights).sum(0))}" for number in np.unique(band).tolist()]
        bands.append("$".join(rows))
    return f'\x1bP0;1q"1;1;{width};{height}{colours}{"-".join(bands)}\x1b\\'


def _repeated(sixels: NDArray[np.int64]) -> str:
    """Write a row of sixels, those that repeat with their count; empty ones at its end are left out."""
    letters = (63 + sixels).astype(np.uint8).tobytes().decode("ascii").rstrip(EMPTY)
    return REPEATED.sub(lambda found: f"!{len(found[0])}{found[1]}", letters)


def blocks(image: Pixels, *, every_colour: bool) -> list[str]:
    """Write an image (2 * lines, columns, 3) as lines of half blocks, each of two pixels above one another.

    Without `every_colour` a pixel has the nearest of the terminal's 240 fixed colours.
    """
    upper, lower = image[::2].tolist(), image[1::2].tolist()
    shown = _direct if every_colour else _fixed
    lines = []
    for above, below in zip(upper, lower, strict=True):
        cells, before = [], ("", "")
        for pair in zip(above, below, strict=True):
            colours = shown(pair[0]), shown(pair[1])
            cells.append(HALF if colours == before else f"\x1b[38;{colours[0]};48;{colours[1]}m{HALF}")
            before = colours
        lines.append("".join(cells) + "\x1b[0m")
    return lines


def _direct(colour: list[int]) -> str:
    """Return the parameters of any colour."""
    return "2;{};{};{}".format(*colour)


def _fixed(colour: list[int]) -> str:
    """Return the parameters of the nearest colour of the cube, or of a grey."""
    steps = [min(range(6), key=lambda step, level=level: abs(CUBE[step] - level)) for level in colour]  # type: ignore[misc]
    mean = sum(colour) / 3
    grey = min(range(len(GREYS)), key=lambda step: abs(GREYS[step] - mean))
    away = sum((CUBE[step] - level) ** 2 for step, level in zip(steps, colour, strict=True))
    if sum((GREYS[grey] - level) ** 2 for level in colour) < away:
        return f"5;{232 + grey}"
    return f"5;{16 + 36 * steps[0] + 6 * steps[1] + steps[2]}"
