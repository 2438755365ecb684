"""Draw random masks that an inpainting model learns to fill: boxes, strokes, or all of an image."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ldmrt.model.training.draws import Draws

Size = tuple[int, int]  # height, width
Mask = NDArray[np.bool_]  # (H, W)

COVERED = (0.1, 0.6)  # strokes cover a share of the image whose mean is drawn between these
LENGTHS = (0.1, 0.5)  # of a stroke, as shares of the image's shorter side
WIDTHS = (0.05, 0.2)


def draw_masks(draws: Draws, size: Size, kinds: Sequence[str]) -> Tensor:
    """Draw a mask for each of B samples, (B, 1, H, W), float32: 1 where the image shall be filled, else 0.

    Args:
        draws: The samples' random numbers.
        size: Height and width.
        kinds: Keys of `MASKS`, of which each sample draws one.
    """

    def draw(random: np.random.Generator) -> NDArray[np.float32]:
        kind = kinds[int(random.integers(len(kinds)))]
        return MASKS[kind](random, size)[None].astype(np.float32)

    return draws.drawn("mask", draw)


def box(random: np.random.Generator, size: Size) -> Mask:
    """Draw a box: its sides are drawn from 1 to the image's, then its place.

    Its mean area is (H + 1) (W + 1) / (4 H W) of the image.
    """
    mask = np.zeros(size, bool)
    sides = [int(random.integers(1, side + 1)) for side in size]
    top, left = (int(random.integers(whole - side + 1)) for whole, side in zip(size, sides, strict=True))
    mask[top : top + sides[0], left : left + sides[1]] = True
    return mask


def strokes(random: np.random.Generator, size: Size) -> Mask:
    """Draw straight strokes with round ends, as many as cover a share of the image that is drawn from `COVERED`.

    Their starts are a Poisson process, also outside of the image, as far as strokes reach. So every pixel is covered
    with the same chance, 1 - exp(-n A) for n strokes a pixel of mean area A (a Boolean model: Chiu et al. 2013,
    Stochastic Geometry and its Applications, equation 3.6), and their mean area is the mean of `COVERED`.
    """
    mask, side = np.zeros(size, bool), min(size)
    share = random.uniform(*COVERED)
    reach = side * (LENGTHS[1] + WIDTHS[1] / 2)
    window = (size[0] - 1 + 2 * reach) * (size[1] - 1 + 2 * reach)
    count = random.poisson(-math.log(1 - share) / (side**2 * mean_stroke()) * window)
    lengths, widths = (side * random.uniform(*bounds, count) for bounds in (LENGTHS, WIDTHS))
    angles = random.uniform(0, 2 * math.pi, count)
    starts = [random.uniform(-reach, whole - 1 + reach, count) for whole in size]
    for y, x, length, width, angle in zip(*starts, lengths, widths, angles, strict=True):
        cover(mask, (y, x), (length * math.sin(angle), length * math.cos(angle)), width / 2)
    return mask


def mean_stroke() -> float:
    """Return the mean area of a stroke, length times width and the circle of its ends, as a share of side squared."""
    (shortest, longest), (thinnest, thickest) = LENGTHS, WIDTHS
    square = (thinnest**2 + thinnest * thickest + thickest**2) / 3
    return (shortest + longest) * (thinnest + thickest) / 4 + math.pi / 4 * square


def cover(mask: Mask, start: tuple[float, float], way: tuple[float, float], radius: float) -> None:
    """Mark the pixels that are no farther than `radius` from the line between `start` and `start + way`."""
    low = [max(0, math.ceil(min(a, a + d) - radius)) for a, d in zip(start, way, strict=True)]
    high = [
        min(whole, math.floor(max(a, a + d) + radius) + 1) for a, d, whole in zip(start, way, mask.shape, strict=True)
    ]
    if low[0] >= high[0] or low[1] >= high[1]:
        return
    y, x = np.ogrid[low[0] : high[0], low[1] : high[1]]
    y, x = y - start[0], x - start[1]
    along = np.clip((y * way[0] + x * way[1]) / (way[0] ** 2 + way[1] ** 2), 0, 1)
    near = (y - along * way[0]) ** 2 + (x - along * way[1]) ** 2 <= radius**2
    mask[low[0] : high[0], low[1] : high[1]] |= near


def whole(random: np.random.Generator, size: Size) -> Mask:
    """Mark all of the image, which then is drawn from nothing."""
    return np.ones(size, bool)


MASKS: Mapping[str, Callable[[np.random.Generator, Size], Mask]] = {"boxes": box, "strokes": strokes, "all": whole}
