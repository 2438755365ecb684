"""Plot how far the rows of a sampler drift from the reference: an SVG that fills its box without scaling its text."""

import math
from collections.abc import Sequence

from ldmrt.runtime.bundle.certificate import RowError

from .markup import Markup, tag

KINDS = {  # attributes of `RowError`, each beside its limit
    "forced": "the network, on the reference's latents",
    "stepped": "the sampler, on the reference's predictions",
    "free": "the latents, in a run of its own",
}
MARKED = 60  # rows; more marks would hide the lines


def drift_plot(rows: Sequence[RowError]) -> Markup:
    """Plot the rows of one backend on a logarithmic scale, each kind of error with its limit."""
    shown = [value for row in rows for kind in KINDS for value in against(row, kind)]
    low, high = _decades(shown)

    def x(i: float) -> str:
        return f"{100 * (i + 0.5) / len(rows):.2f}"

    def y(value: float) -> str:
        """Return the distance from the top in percent: 0 if the value is not finite, 100 for zero."""
        if not math.isfinite(value):
            return "0"
        return f"{100 * (high - math.log10(value)) / (high - low):.2f}" if value > 0 else "100"

    def at(i: float, value: float) -> dict[str, str]:
        return {"x": f"{x(i)}%", "y": f"{y(value)}%"}

    grid, lines, marks, bands = [], [], [], []
    for power in range(low, high + 1, step(high - low, 8)):
        height = f"{y(10.0**power)}%"
        grid.append(tag("line", class_="grid", x2="100%", y1=height, y2=height))
        label = "0" if power == low and 0 in shown else _power(power)
        grid.append(tag("text", label, x=-8, y=height, dy=".35em", text_anchor="end"))
    for i, row in enumerate(rows):
        if i % step(len(rows), 8) == 0:
            grid.append(tag("text", str(row.row), x=f"{x(i)}%", y="100%", dy="1.5em", text_anchor="middle"))
    for kind in KINDS:
        pairs = [against(row, kind) for row in rows]
        for values, class_ in ((pair[1] for pair in pairs), f"{kind} limit"), ((pair[0] for pair in pairs), kind):
            points = " ".join(f"{x(i)},{y(value)}" for i, value in enumerate(values))
            lines.append(tag("polyline", class_=class_, points=points))
        for i, (value, limit) in enumerate(pairs):
            if not value <= limit:
                marks.append(tag("use", class_="over", href="#over", **at(i, value)))
                if not math.isfinite(value):
                    marks.append(tag("text", str(value), dy="1.75em", text_anchor="middle", **at(i, value)))
            elif len(rows) <= MARKED:
                marks.append(tag("use", class_=f"mark {kind}", href=f"#{kind}", **at(i, value)))
    for i, row in enumerate(rows):
        errors = ["\n{} {:.1e}, at most {:.1e}".format(kind, *against(row, kind)) for kind in KINDS]
        title = tag("title", f"row {row.row}, t = {row.t:g}", errors)
        bands.append(tag("rect", title, class_="band", x=f"{x(i - 0.5)}%", width=f"{100 / len(rows)}%", height="100%"))

    labels = [
        tag("text", "difference, of the largest value", x="-2.4rem", y=0, dy="-1.1em"),
        tag("text", "row of the sampler", x="50%", y="100%", dy="3.1em", text_anchor="middle"),
    ]
    stretched = tag("svg", lines, width="100%", viewBox="0 0 100 100", preserveAspectRatio="none")
    label = f"Drift of {len(rows)} rows on {rows[0].backend}; the table below has the numbers"
    return tag("div", tag("svg", grid, labels, stretched, marks, bands, role="img", aria_label=label), class_="plot")


def against(row: RowError, kind: str) -> tuple[float, float]:
    """Return the error of a kind and its limit."""
    return getattr(row, kind), getattr(row, f"{kind}_limit")


def step(length: int, most: int) -> int:
    """Return the smallest of 1, 2, 5, 10, 20 ... with at most `most` steps in `length`."""
    scale = 1
    while length > 5 * scale * most:
        scale *= 10
    return next(digit * scale for digit in (1, 2, 5) if length <= digit * scale * most)


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Return the powers of ten around all positive values, one lower if there is a zero to draw."""
    powers = [math.log10(value) for value in values if 0 < value < math.inf] or [-8.0]
    low, high = math.floor(min(powers)) - (0 in values), math.ceil(max(powers))
    return low, max(high, low + 1)


def _power(power: int) -> str:
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
