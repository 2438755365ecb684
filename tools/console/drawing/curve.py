"""Draw a curve with characters, for a terminal."""

import math
from collections.abc import Sequence
from itertools import pairwise

BLOCKS = " ▁▂▃▄▅▆▇█"


def curve(values: Sequence[float], width: int = 60, height: int = 8) -> list[str]:
    """Draw positive values from left to right as bars on a logarithmic axis, whose ends are written beside it.

    Args:
        values: The values, at least one; where there are more than `width`, each bar is the mean of several.
        width: Bars.
        height: Lines.

    Returns:
        The lines, from the top.
    """
    count = min(width, len(values))
    ends = [len(values) * i // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(ends)]
    logs = [math.log(mean) for mean in means]
    low, span = min(logs), max(logs) - min(logs) or 1.0
    filled = [1 + round((8 * height - 1) * (log - low) / span) for log in logs]  # eighths of a line
    titles = [f"{max(means):.3g}", *[""] * (height - 2), f"{min(means):.3g}"]
    return [
        f"{title:>9} " + "".join(BLOCKS[min(8, max(0, eighths - 8 * row))] for eighths in filled)
        for row, title in zip(reversed(range(height)), titles, strict=True)
    ]
