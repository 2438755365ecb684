"""Plot curves into a PNG."""

import io
import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 720, 300  # units, of which the image has SHARP pixels along a side
SHARP, SMOOTH = 2, 2  # lines are drawn SMOOTH times as large, and averaged
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 28, 32  # units around the curves
FONT = 13
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe & Ito 2008
GREY, PALE = "#555555", "#e6e6e6"
DOTTED = 40  # points; more dots would hide the line
MOST_X, MOST_Y = 8, 6  # ticks


def plot(curves: Mapping[str, Points], axis: str) -> bytes:
    """Plot curves over a common horizontal axis; the vertical one is logarithmic where values span a factor of 5.

    Args:
        curves: The points (x, y) of each by its title, in the order of x; at least one point altogether.
        axis: The title of the horizontal axis.

    Returns:
        A PNG of 1440 x 600 pixels.
    """
    every = [point for points in curves.values() for point in points]
    (left, right), (low, high) = (_span([point[i] for point in every]) for i in (0, 1))
    logarithmic = min(y for _, y in every) > 0 and max(y for _, y in every) >= 5 * min(y for _, y in every)
    if logarithmic:
        low, high = (math.log10(pick(y for _, y in every)) for pick in (min, max))
        y_ticks = _powers(low, high)
    else:
        y_ticks = {y: f"{y:g}" for y in _ticks(low, high, MOST_Y)}
    unit = SHARP * SMOOTH
    image = Image.new("RGB", (WIDTH * unit, HEIGHT * unit), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(FONT * unit)

    def x_of(x: float) -> int:
        return round(unit * (LEFT + (WIDTH - LEFT - RIGHT) * (x - left) / (right - left)))

    def y_of(y: float) -> int:
        return round(unit * (TOP + (HEIGHT - TOP - BOTTOM) * (high - y) / (high - low)))

    for y, label in y_ticks.items():
        draw.line([(LEFT * unit, y_of(y)), ((WIDTH - RIGHT) * unit, y_of(y))], PALE, unit)
        draw.text(((LEFT - 8) * unit, y_of(y)), label, GREY, font, anchor="rm")
    draw.text(((LEFT - 8) * unit, (HEIGHT - BOTTOM + 8) * unit), axis, GREY, font, anchor="rt")
    for x in _ticks(left, right, MOST_X):
        draw.text((x_of(x), (HEIGHT - BOTTOM + 8) * unit), f"{x:g}", GREY, font, anchor="mt")
    place = float(LEFT * unit)
    for (title, points), color in zip(curves.items(), COLORS, strict=False):
        placed = [(x_of(x), y_of(math.log10(y) if logarithmic else y)) for x, y in points]
        draw.line(placed, color, 2 * unit, joint="curve")
        for x, y in placed if len(placed) <= DOTTED else ():
            draw.ellipse([x - 3 * unit, y - 3 * unit, x + 3 * unit, y + 3 * unit], color)
        draw.text((place, TOP / 2 * unit), title, color, font, anchor="lm")
        place += draw.textlength(title, font) + 20 * unit
    buffer = io.BytesIO()
    image.reduce(SMOOTH).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Return the least and the largest value, a little apart where they are equal."""
    low, high = min(values), max(values)
    least = max(1e-9 * max(abs(low), abs(high)), 1e-300)
    return (low, high) if high - low > least else (low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1))


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Return the multiples of 1, 2 or 5 times a power of ten between two numbers, at most one more than `most`."""
    scale = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(digit * scale for digit in (1, 2, 5, 10) if high - low <= digit * scale * most)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _powers(low: float, high: float) -> dict[float, str]:
    """Return the logarithms of 1, 2 and 5 times powers of ten between two, or of the powers alone, with labels."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for digits in ((1, 2, 5), (1,)):
        found = {math.log10(digit) + power: f"{digit * 10.0**power:g}" for power in powers for digit in digits}
        found = {place: label for place, label in found.items() if low <= place <= high}
        if len(found) <= 2 * MOST_Y:
            return found
    return dict(list(found.items())[:: -(-len(found) // MOST_Y)])
