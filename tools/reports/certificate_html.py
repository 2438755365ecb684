"""Write a certificate as one HTML file, which fetches nothing, so it can be sent, kept and printed."""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmrt.runtime.bundle.certificate import Certificate, ImageSimilarity, RowError, ShortcutCost, TensorError, TimeGain
from ldmrt.runtime.files.writing import write_atomically
from ldmrt.runtime.parity.metrics import OFF

from .drift_plot import KINDS, against, drift_plot
from .markup import Inside, Markup, tag

SHOWN = 5  # failures that are not folded away: more would push the figures off a phone's first screen
SMALL = 256  # pixels: up to here an image is shown with its own pixels, not smoothed
GAIN = 5  # where the slider starts: at 2**5 a difference of one grey level is just visible
Row = tuple[bool, Sequence[str]]  # whether it is within its tolerance, and its cells
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Pair:
    """The two images (H, W, 3) of an `ImageSimilarity`."""

    backend: str
    prompt: str
    seed: int
    reference: NDArray[np.uint8]
    found: NDArray[np.uint8]


def write_report(path: Path, certificate: Certificate, images: Sequence[Pair]) -> None:
    """Write the page atomically.

    Args:
        path: The HTML file.
        certificate: The measurements that the page shows.
        images: Pairs to show beside the similarity of the same backend, prompt and seed.
    """
    proven = bool(certificate.figures or certificate.failures)
    headline = "Within tolerance" if certificate.within else "Past tolerance" if proven else "Nothing proven"
    sections = [
        _components(certificate.figures),
        _rows(certificate.drifts),
        _images(certificate.pictures, images),
        _costs(certificate.costs),
        _times(certificate.times),
        _skipped(certificate.gaps),
        _about(certificate.about),
    ]
    page = Template(Path(__file__).with_name("report.html").read_text("utf-8")).substitute(
        title=escape(headline),
        verdict=_verdict(headline, certificate) + _tiles(certificate),
        sections="\n".join(filter(None, sections)),
    )
    with write_atomically(path) as file:
        file.write(page.encode("utf-8", "replace"))  # a prompt may hold what UTF-8 cannot


def _verdict(headline: str, certificate: Certificate) -> Markup:
    counts = (certificate.figures, "figure"), (certificate.drifts, "row"), (certificate.pictures, "image")
    *first, last = [_count(items, name) for items, name in counts]
    everything = f"{', '.join(first)} and {last}"
    failures = [tag("li", failure) for failure in certificate.failures]
    if certificate.within:
        summary, sign = f"Everything that was measured: {everything}.", "M10 16.5l4.5 4.5L22.5 12"
    else:
        summary = f"{len(failures)} past tolerance, of {everything}." if failures else "No component was measured."
        sign = "M11 11l10 10M11 21l10-10"
    listed = [tag("ol", failures[:SHOWN])] if failures else []
    if rest := failures[SHOWN:]:
        listed.append(_folded(f"and {len(rest)} more", tag("ol", rest, start=SHOWN + 1)))
    disc = [tag("circle", cx=16, cy=16, r=16), tag("path", d=sign)]
    began = [" It began with: ", tag("b", certificate.culprit), "."] if certificate.culprit else []
    inside = [tag("svg", disc, viewBox="0 0 32 32", aria_hidden="true"), tag("h1", headline), tag("p", summary, began)]
    inside += [tag("div", listed, class_="failures")] if listed else []
    return tag("section", inside, class_="verdict" if certificate.within else "verdict past")


def _tiles(certificate: Certificate) -> Markup:
    """Show the worst value of each kind of measurement as a share of its tolerance."""
    tiles = dict.fromkeys(("Components", "Rows", "Images"), ("not measured", ""))
    if certificate.figures:
        worst = _worst(certificate.figures)
        tiles["Components"] = _share(worst.relative, worst.limit), f"{worst.component}, {worst.backend}"
    drifts = [(*against(row, kind), kind, row) for row in certificate.drifts for kind in KINDS]
    if drifts:
        value, limit, kind, row = max(drifts, key=lambda drift: _used(drift[0], drift[1]))
        tiles["Rows"] = _share(value, limit), f"{kind}, row {row.row}, {row.backend}"
    if certificate.pictures:
        image = min(certificate.pictures, key=lambda i: -math.inf if math.isnan(i.psnr) else i.psnr - i.limit)
        tiles["Images"] = _decibels(image.psnr), f"at least {image.limit:g} dB, {image.backend}"
    return tag(
        "dl", (_term(a + ", at worst" * bool(c), b, tag("small", c)) for a, (b, c) in tiles.items()), class_="tiles"
    )


def _components(figures: Sequence[TensorError]) -> Markup:
    rows, folds = [], []
    heads = ["case", "output", "", ">relative", ">at most", ">largest", ">mean", ">1 − cosine"]
    for group in _grouped(figures, "component", "backend"):
        worst, past = _worst(group), sum(not figure.within for figure in group)
        share = f"--used: {100 * min(_used(worst.relative, worst.limit), 1):.0f}%"
        cells = [tag("code", worst.component), worst.backend, _flag(worst.within), *_against(worst)]
        cells.append(tag("span", _share(worst.relative, worst.limit), class_="share", style=share))
        rows.append((worst.within, cells))
        lines = []
        for figure in group:
            numbers = [_number(figure.largest), _number(figure.mean), _number(np.maximum(1 - figure.cosine, 0))]
            cells = [figure.case, tag("code", figure.output), _flag(figure.within), *_against(figure), *numbers]
            lines.append((figure.within, cells))
        name = f"{worst.component} on {worst.backend}"
        summary = f"{name}: {_count(group, 'figure')}" + (f", {past} past" if past else "")
        folds.append(_folded(summary, _table(f"All figures of {name}", heads, lines), opened=past > 0))
    heads = ["component", "backend", "", ">largest difference", ">at most", "used"]
    table = _table("The worst figure of each component and backend", heads, rows)
    note = "The largest difference, relative to the reference's largest value; the worst of all cases and outputs."
    return _section("Components", note, [table, tag("div", folds, class_="folds")] * bool(figures))


def _against(figure: TensorError) -> list[str]:
    return [_number(figure.relative), f"{figure.limit:g}"]


def _rows(drifts: Sequence[RowError]) -> Markup:
    plots = []
    heads = ["row", ">t", "", *(head for kind in KINDS for head in (f">{kind}", ">at most"))]
    for rows in _grouped(drifts, "backend"):
        lines = []
        for row in rows:
            numbers = [_number(value) for kind in KINDS for value in against(row, kind)]
            lines.append((row.within, [str(row.row), f"{row.t:g}", _flag(row.within), *numbers]))
        table = _folded(f"all of {_count(rows, 'row')}", _table(f"Rows on {rows[0].backend}", heads, lines))
        plots.append(tag("div", tag("h3", rows[0].backend), drift_plot(rows), table))
    legend = []
    for kind, text in KINDS.items():
        drawn = tag("line", class_=kind, x2="100%"), tag("use", class_=f"mark {kind}", href=f"#{kind}", x="50%")
        legend.append(tag("li", tag("svg", drawn, aria_hidden="true"), f"{kind}: {text}"))
    note = "Forced and stepped errors are those of one row, free errors add up. Dashed is a limit; a cross is past it."
    return _section(
        "Row by row", note, [tag("ul", legend, class_="legend"), tag("div", plots, class_="plots")] * bool(drifts)
    )


def _images(similarities: Sequence[ImageSimilarity], pairs: Sequence[Pair]) -> Markup:
    by_key = {(pair.backend, pair.prompt, pair.seed): pair for pair in pairs}
    cards = [_card(image, by_key.get((image.backend, image.prompt, image.seed))) for image in similarities]
    return _section("Images", "The reference and the export started from the same noise.", cards)


def _card(image: ImageSimilarity, pair: Pair | None) -> Markup:
    measures = {
        "verdict": _flag(image.within),
        "PSNR": f"{_decibels(image.psnr)}, at least {image.limit:g}",
        "SSIM": "needs scikit-image" if image.ssim is None else f"{image.ssim:.6f}",
        f"pixels more than {OFF} of 255 off": f"{100 * image.off:.3g} %",
    }
    title = tag("h3", image.prompt), tag("p", f"seed {image.seed}, {image.backend}", class_="soft")
    listed = tag("dl", (_term(name, value) for name, value in measures.items()), class_="measures")
    shown = tag("div", _three(pair), class_="images") if pair else ""
    return tag("article", title, listed, shown, class_="card" if image.within else "card past")


def _costs(costs: Sequence[ShortcutCost]) -> Markup:
    rows = [(True, [cost.shortcut, cost.backend, cost.prompt, str(cost.seed), cost.psnr_text]) for cost in costs]
    table = _table("What shortcuts cost", ["shortcut", "backend", "prompt", ">seed", ">PSNR"], rows)
    note = "An image with a shortcut against the same without. A shortcut is chosen by the user, so it has no limit."
    return _section("Costs", note, [table] * bool(costs))


def _times(times: Sequence[TimeGain]) -> Markup:
    rows = [(True, [one.backend, one.what, f"{one.seconds:.3g}", f"{one.ratio:.2f}"]) for one in times]
    table = _table("What narrow precisions gain", ["backend", "time of", ">seconds", ">relative to fp32"], rows)
    note = "Narrow and float32 by turns, on the machine that this was measured on. It has no limit."
    return _section("Time", note, [table] * bool(times))


def _three(pair: Pair) -> list[Markup]:
    apart = np.abs(pair.reference.astype(np.int16) - pair.found).astype(np.uint8)
    gain = 2**GAIN
    slider = tag("input", type="range", min=0, max=6, value=GAIN, autocomplete="off", aria_label="amplification")
    label = tag("label", "difference", slider, tag("output", f"{gain}×"))
    return [
        _figure(pair.reference, f"{pair.prompt}: the reference", "reference"),
        _figure(pair.found, f"{pair.prompt}: exported", "exported"),
        _figure(apart, f"{pair.prompt}: where the two differ", label, class_="amplified", style=f"--gain: {gain}"),
    ]


def _figure(pixels: NDArray[np.uint8], alt: str, caption: str, **attributes: str) -> Markup:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    height, width, _ = pixels.shape
    small = "small" if max(height, width) <= SMALL else None
    image = tag("img", src=source, alt=alt, width=width, height=height, class_=small)
    return tag("figure", image, tag("figcaption", caption), **attributes)


def _skipped(gaps: Sequence[str]) -> Markup:
    listed = [tag("ul", (tag("li", gap) for gap in gaps))] * bool(gaps)
    return _section("Not measured", "Cases for which a backend has no engine.", listed)


def _about(about: Mapping[str, object]) -> Markup:
    return _section(
        "Measured on", "", [_folded("request, versions, hardware, tolerances, hashes", _value(about))] * bool(about)
    )


def _value(value: object) -> str:
    """Write a value of any kind that JSON has."""
    if isinstance(value, Mapping):
        rows = [(tag("dt", str(name)), tag("dd", _value(item))) for name, item in value.items()]
        return tag("dl", (cell for row in rows for cell in row), class_="about")
    if isinstance(value, (list, tuple)):
        return tag("ul", (tag("li", _value(item)) for item in value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _section(name: str, note: str, inside: Sequence[str]) -> Markup:
    """Make a section; an empty text if nothing is inside."""
    return tag("section", tag("h2", name), tag("p", note, class_="soft"), inside) if inside else Markup()


def _term(name: str, *values: Inside) -> Markup:
    return tag("div", tag("dt", name), tag("dd", *values))


def _folded(summary: str, inside: str, *, opened: bool = False) -> Markup:
    return tag("details", tag("summary", summary), inside, open="" if opened else None)


def _table(label: str, heads: Sequence[str], rows: Iterable[Row]) -> Markup:
    """Make a table: a head that starts with ">" is of numbers, an empty head is of verdicts."""
    kinds = ["n" if head.startswith(">") else None for head in heads]
    top = [
        tag("th", head.lstrip(">") or "verdict", scope="col", class_=kind)
        for head, kind in zip(heads, kinds, strict=True)
    ]
    lines = []
    for within, (name, *cells) in rows:
        inside = [tag("td", cell, class_=kind) for cell, kind in zip(cells, kinds[1:], strict=True)]
        lines.append(tag("tr", tag("th", name, scope="row"), inside, class_=None if within else "past"))
    table = tag("table", tag("thead", tag("tr", top)), tag("tbody", lines))
    return tag("div", table, class_="wide", role="region", aria_label=label, tabindex=0)


def _count(items: Sequence[object], name: str) -> str:
    return f"{len(items)} {name}{'' if len(items) == 1 else 's'}"


def _grouped(measured: Sequence[T], *names: str) -> list[list[T]]:
    """Group measurements with the same values of the attributes `names`, in the order of their first members."""
    groups: dict[tuple[str, ...], list[T]] = {}
    for measurement in measured:
        groups.setdefault(tuple(getattr(measurement, name) for name in names), []).append(measurement)
    return list(groups.values())


def _worst(figures: Sequence[TensorError]) -> TensorError:
    return max(figures, key=lambda figure: _used(figure.relative, figure.limit))


def _used(value: float, limit: float) -> float:
    """Return the share of the limit; NaN counts as infinite, so that it is the worst."""
    if math.isnan(value):
        return math.inf
    return value / limit if limit else (math.inf if value else 0.0)


def _share(value: float, limit: float) -> str:
    used = _used(value, limit)
    if not math.isfinite(value):
        return _number(value)
    if used > 1:
        return f"{used:.3g} × the limit" if limit else "the limit is 0"
    return f"{100 * used:.3g} % of the limit"


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "0" if value == 0 else f"{value:.1e}" if math.isfinite(value) else "infinite"


def _decibels(psnr: float) -> str:
    return "identical" if psnr == math.inf else "NaN" if math.isnan(psnr) else f"{psnr:.1f} dB"


def _flag(within: bool) -> Markup:
    return tag("span", "✓ within" if within else "✗ past", class_="flag")
