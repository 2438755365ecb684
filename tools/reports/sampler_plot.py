"""Plot the grids of samplers: timesteps and noise levels, row by row."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.writing import write_atomically
from ldmrt.runtime.optional import unavailable
from ldmrt.runtime.samplers.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#333333")  # Okabe & Ito 2008
FORMATS = (".png", ".svg", ".pdf")
DASH = 5.0  # points
STYLE: dict[Any, Any] = {  # matplotlib's type of the keys depends on its version
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "svg.hashsalt": "ldmrt",  # the same bytes every time
}


def plot(plans: Mapping[str, Plan], out: Path) -> None:
    """Draw two panels over the rows of each plan: the timestep, and sigma / alpha on a logarithmic axis.

    Args:
        plans: Plans by the name of the sampler.
        out: A .png, .svg or .pdf file.

    Raises:
        LdmrtError: The suffix is none of these, or matplotlib is not installed.
    """
    if out.suffix.lower() not in FORMATS or out.is_dir():
        expected = f"a file name that ends in {', '.join(FORMATS)}"
        raise LdmrtError("samplers", "invalid --plot", expected=expected, found=out)
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise unavailable(error, "samplers") from None
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 3.9), dpi=100, layout="constrained")
        times, levels = figure.subplots(1, 2)
        draw(times, {name: plan.t for name, plan in plans.items()})
        draw(levels, {name: level(plan) for name, plan in plans.items()})
        levels.set_yscale("log")
        levels.yaxis.set_major_formatter("{x:g}")
        times.set_title("timestep")
        levels.set_title("noise level, sigma / alpha")
        for axes in (times, levels):
            axes.set_xlabel("row: one evaluation of the network")
            axes.xaxis.get_major_locator().set_params(integer=True)
        handles, names = times.get_legend_handles_labels()
        legend = figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 6), frameon=False)
        for line in legend.get_lines():
            line.set_linestyle("solid")
        content = rendered(figure, out.suffix.lower()[1:])
    with write_atomically(out) as file:
        file.write(content)


def rendered(figure: "Figure", kind: str) -> bytes:
    """Render the content of a png, svg or pdf file; a PNG gets a palette, which makes it a third of the size."""
    from PIL import Image

    undated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=undated[kind])
    if kind == "png":
        image = Image.open(buffer).convert("RGB").quantize(256)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def level(plan: Plan) -> NDArray[np.float64]:
    """Return sigma / alpha of each row, (rows,); NaN at pure noise, where alpha is 0."""
    return np.divide(plan.sigma, plan.alpha, out=np.full(plan.rows, np.nan), where=plan.alpha > 1e-6)


def draw(axes: "Axes", curves: Mapping[str, NDArray[np.float64]]) -> None:
    """Draw curves (rows,) with a dot per row; curves that coincide share a line, in dashes of their colors."""
    same: dict[bytes, list[str]] = {}
    for name, curve in curves.items():
        same.setdefault(np.round(curve, 6).tobytes(), []).append(name)
    for i, (name, curve) in enumerate(curves.items()):
        group = same[np.round(curve, 6).tobytes()]
        turn, count = group.index(name), len(group)
        dashes = (turn * DASH, (DASH, (count - 1) * DASH)) if count > 1 else "solid"
        axes.plot(curve, label=name, color=COLORS[i % len(COLORS)], linestyle=dashes, linewidth=1.6,
                  marker="o", markersize=3, markevery=(turn, count))  # fmt: skip
