"""Curves in a PNG: where a point is drawn, and the marks of the axes."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from ldmrt.tools.console.drawing.plot import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_X,
    RIGHT,
    SHARP,
    TOP,
    WIDTH,
    Points,
    _powers,
    _ticks,
    plot,
)


def blue(points: Points) -> np.ndarray:
    """Where the first curve's color is, below its title."""
    image = np.asarray(Image.open(io.BytesIO(plot({"loss": points}, "step"))))
    found = (image == [0x00, 0x72, 0xB2]).all(-1)
    found[: SHARP * (TOP - 4)] = False
    return found


@pytest.mark.parametrize(
    ("values", "height"),
    [
        ([1.0, 10.0, 100.0], 0.5),  # logarithmic
        ([1.0, 2.0, 3.0], 0.5),
        ([-1.0, 0.0, 3.0], 0.75),
        ([3.0, 3.0, 3.0], 0.5),
    ],
)
def test_a_point_is_at_its_place(values: list[float], height: float) -> None:
    found = blue([(10.0 * i, value) for i, value in enumerate(values)])
    y, x = np.nonzero(found)
    middle = SHARP * (LEFT + (WIDTH - LEFT - RIGHT) / 2)
    expected = SHARP * (TOP + height * (HEIGHT - TOP - BOTTOM))
    assert abs(y[x == round(middle)].mean() - expected) <= 2  # the dot's middle, of whole pixels
    assert (x.min(), x.max()) == pytest.approx((SHARP * (LEFT - 3), SHARP * (WIDTH - RIGHT + 3)), abs=2)


def test_one_point_and_several_curves_are_drawn() -> None:
    assert blue([(1, 0.5)]).any()
    assert plot({"loss": [(1, 0.5), (2, 0.4)], "held-out images": [(2, 0.6)]}, "step") != plot(
        {"loss": [(1, 0.5), (2, 0.4)]}, "step"
    )


@pytest.mark.parametrize("values", [[5e-324, 0.0], [1.0, 1 + 2e-16], [1e-300, 1e300], [-1e38, 1e38], [0.0, 0.0]])
def test_extreme_values_are_drawn(values: list[float]) -> None:
    assert blue(list(enumerate(values))).any()


@pytest.mark.parametrize(("low", "high"), [(0, 6), (2, 60), (500, 5500), (-0.3, 0.9), (1, 1.00001)])
def test_ticks_are_round_and_few(low: float, high: float) -> None:
    ticks = _ticks(low, high, MOST_X)
    step = ticks[1] - ticks[0]
    assert all(low <= tick <= high for tick in ticks)
    assert 2 <= len(ticks) <= MOST_X + 1
    assert step / 10 ** math.floor(math.log10(step * 1.0001)) == pytest.approx(
        round(step / 10 ** math.floor(math.log10(step * 1.0001))), rel=1e-6
    )


def test_powers_are_labelled() -> None:
    assert list(_powers(-1.2, 0.4).values()) == ["0.1", "0.2", "0.5", "1", "2"]
    assert list(_powers(-3, 3).values()) == ["0.001", "0.01", "0.1", "1", "10", "100", "1000"]
    assert len(_powers(-300, 300)) <= 8
