"""Curves of characters: as high as the logarithm of the value."""

import math

import pytest

from ldmrt.tools.console.drawing.curve import BLOCKS, curve


def heights(lines: list[str]) -> list[int]:
    """Eighths of a line that each bar fills."""
    width = max(map(len, lines)) - 10
    bars = [line[10:].ljust(width) for line in lines]
    return [sum(BLOCKS.index(bar[i]) for bar in bars) for i in range(width)]


def test_bars_are_logarithms() -> None:
    values = [1000.0, 100.0, 10.0, 1.0, 3.0]
    lines = curve(values, height=4)
    assert heights(lines) == [1 + round(31 * math.log10(value) / 3) for value in values]
    assert lines[0].startswith("    1e+03 ")
    assert lines[-1].startswith("        1 ")


def test_many_values_are_averaged() -> None:
    assert heights(curve([1.0, 3.0, 20.0, 4.0, 1.0, 3.0], width=3, height=2)) == [1, 16, 1]


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0, 2.0]])
def test_a_flat_curve_is_drawn(values: list[float]) -> None:
    assert heights(curve(values)) == [1] * len(values)
