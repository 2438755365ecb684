"""Write a sweep as one HTML page of images, which fetches nothing, so it can be sent, kept and printed."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import product
from pathlib import Path
from string import Template

from ldmrt.runtime.files.writing import write_atomically

from .markup import Markup, tag

SMALL = 256  # pixels: up to here an image is shown with its own pixels, not smoothed


Axis = tuple[str, Sequence[str]]  # its name and the texts of its values
Place = tuple[int, ...]  # of a cell: the number of the value on each axis


@dataclass(frozen=True, eq=False)
class Shown:
    """One cell of the page.

    Attributes:
        png: The image, as a file.
        size: Its width and height in pixels.
        side: The height of one image in it, in pixels.
        seconds: The time of its images.
        ratio: Its time over the reference's.
        psnr: To the reference in dB; None where its images have another size.
        ssim: To the reference; None where it is unknown.
    """

    png: bytes
    size: tuple[int, int]
    side: int
    seconds: float
    ratio: float
    psnr: float | None
    ssim: float | None


def write_sweep(
    path: Path,
    axes: Sequence[Axis],
    cells: Mapping[Place, Shown],
    reference: Place,
    about: Mapping[str, str],
) -> None:
    """Write the page atomically.

    The first axis goes down a table, the second across; each combination of values of further axes is a table of its
    own.

    Args:
        path: The HTML file.
        axes: The axes.
        cells: The cells that were drawn; others stay empty.
        reference: The cell that the others are compared with.
        about: What all cells share, by its name.
    """
    further = list(product(*(range(len(texts)) for _, texts in axes[2:])))
    page = Template(Path(__file__).with_name("sweep.html").read_text("utf-8")).substitute(
        title=escape(f"Sweep of {', '.join(name for name, _ in axes)}"),
        header=_header(axes, reference, about),
        tables="\n".join(_table(axes, rest, cells, reference) for rest in further),
    )
    with write_atomically(path) as file:
        file.write(page.encode("utf-8", "replace"))  # a prompt may hold what UTF-8 cannot


def _named(axes: Sequence[Axis], place: Place) -> str:
    """Name the values that a place has on these axes."""
    return ", ".join(f"{name} {texts[i] or 'none'}" for (name, texts), i in zip(axes, place, strict=True))


def _header(axes: Sequence[Axis], reference: Place, about: Mapping[str, str]) -> Markup:
    explained = (
        "Seconds are those of a cell's images after others of the same size, with the ratio to the reference in "
        "brackets. PSNR and SSIM, which needs scikit-image, compare its pixels with the reference's, which is framed: "
    )
    heading = tag("h1", "Sweep of ", " × ".join(name for name, _ in axes))
    said = tag("p", explained, tag("b", _named(axes, reference)), ".")
    return Markup(heading + said + _listed(about, "about"))


def _table(axes: Sequence[Axis], rest: Place, cells: Mapping[Place, Shown], reference: Place) -> Markup:
    """Write the table of one combination of the further axes' values."""
    across = axes[1:2]
    columns = [(i,) for i in range(len(across[0][1]))] if across else [()]
    rows = []
    for row in range(len(axes[0][1])):
        places = [(row, *column, *rest) for column in columns]
        inside = [_cell(cells.get(place), place == reference) for place in places]
        rows.append(tag("tr", tag("th", _named(axes[:1], (row,)), scope="row"), inside))
    heads = [tag("th", _named(across, column), scope="col") for column in columns if column]
    head = [tag("thead", tag("tr", tag("th"), heads))] if heads else []
    title = [tag("h2", _named(axes[2:], rest))] if rest else []
    return Markup("".join([*title, tag("div", tag("table", head, tag("tbody", rows)), class_="wide")]))


def _cell(shown: Shown | None, is_reference: bool) -> Markup:
    if shown is None:
        return tag("td", "not drawn")
    facts = {"seconds": f"{shown.seconds:.3f} ({shown.ratio:.2f})"}
    if not is_reference:
        facts["PSNR"] = _decibels(shown.psnr)
        facts |= {"SSIM": f"{shown.ssim:.4f}"} if shown.ssim is not None else {}
    image = tag(
        "img",
        src="data:image/png;base64," + base64.b64encode(shown.png).decode(),
        alt="reference" if is_reference else "image",
        width=shown.size[0],
        height=shown.size[1],
        class_="small" if shown.side <= SMALL else None,
    )
    return tag("td", image, _listed(facts), class_="reference" if is_reference else None)


def _listed(facts: Mapping[str, str], kind: str | None = None) -> Markup:
    """Write names and values as a list."""
    return tag(
        "dl", [part for name, value in facts.items() for part in (tag("dt", name), tag("dd", value))], class_=kind
    )


def _decibels(psnr: float | None) -> str:
    return "another size" if psnr is None else "identical" if psnr == math.inf else f"{psnr:.1f} dB"
