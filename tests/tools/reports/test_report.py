"""The page that shows a certificate: what it says."""

import base64
import io
import math
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime.bundle.certificate import Certificate, RowError, ShortcutCost, TensorError
from ldmrt.runtime.parity.metrics import image_similarity
from ldmrt.tools.reports import certificate_html
from ldmrt.tools.reports.certificate_html import Pair, write_report
from ldmrt.tools.reports.drift_plot import step
from ldmrt.tools.reports.markup import tag

HOSTILE = """<script>document.title = "taken"</script> "a" 'b' & <img src=x onerror=alert(1)> $title \ud800"""
PROMPT = "a red apple, noto style, blue background"
BACKENDS = "onnxruntime-cpu", "tensorrt-fp16"
VOID = {"meta", "link", "img", "input"}


@dataclass
class Page(HTMLParser):
    """A page's elements, and its text without style and script."""

    html: str
    open: list[str] = field(default_factory=list)
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)
        self.close()
        assert self.open == ["html"] or not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    def all(self, name: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def pair(backend: str = BACKENDS[0], prompt: str = PROMPT) -> Pair:
    """Left half two grey levels apart, right half equal."""
    reference = np.full((8, 8, 3), 100, np.uint8)
    found = reference.copy()
    found[:, :4] += 2
    return Pair(backend, prompt, 3, reference, found)


def certificate(**about: Any) -> Certificate:
    figures = [
        TensorError(component, backend, case, "sample", 4e-6, 2e-7, 1e-6, 1 - 1e-9, 2e-5)
        for component in ("text_encoder", "unet", "vae_decoder")
        for backend in BACKENDS
        for case in ("batch 1, 64x64", "batch 3, 64x64", "batch 2, 64x72")
    ]
    drifts = [
        RowError(backend, row, 999 - 50 * row, 3e-7, 1e-7, 2e-7 * (row + 1), 2e-6, 1e-5, 3e-5)
        for backend in BACKENDS
        for row in range(20)
    ]
    one = pair()
    picture = image_similarity(one.backend, one.prompt, one.seed, one.found, one.reference, 40.0)
    return Certificate(tuple(figures), tuple(drifts), (picture,), about)


def changed(values: tuple[Any, ...], i: int, **new: Any) -> tuple[Any, ...]:
    return (*values[:i], replace(values[i], **new), *values[i + 1 :])


def failing() -> Certificate:
    """Three figures, two rows and the picture, in all ways in which a number can be bad."""
    good = certificate()
    figures = changed(good.figures, 7, relative=3e-4)
    figures = changed(figures, 9, relative=math.nan, largest=math.nan, mean=math.nan, cosine=math.nan)
    figures = changed(figures, 13, relative=math.inf, largest=math.inf, mean=math.inf, cosine=math.nan)
    drifts = changed(changed(good.drifts, 18, free=4e-5), 19, free=math.inf, forced=math.nan)
    return replace(good, figures=figures, drifts=drifts, pictures=changed(good.pictures, 0, psnr=20.5, ssim=None))


def written(tmp_path: Path, given: Certificate, *pairs: Pair) -> Page:
    write_report(tmp_path / "new" / "report.html", given, pairs)
    return Page((tmp_path / "new" / "report.html").read_text("utf-8"))


def test_page_says_what_was_measured(tmp_path: Path) -> None:
    about = {
        "request": {"steps": 20, "seeds": [3, 4]},
        "tolerances": {"unet": {"limit": 2e-05, "reason": "sums in another order"}},
        "hashes": {"unet": "0a1b" * 16},
        "gpu": None,
    }
    page = written(tmp_path, certificate(**about), pair())
    assert "Within tolerance" in page.text
    assert "Everything that was measured: 18 figures, 40 rows and 1 image." in page.text
    assert "✗" not in page.text
    for said in ("text_encoder", *BACKENDS, "batch 2, 64x72", "1.0e-06", "2e-05", "5 % of the limit", "1.0e-09"):
        assert said in page.text
    assert (
        "row 19, t = 49\nforced 3.0e-07, at most 2.0e-06\nstepped 1.0e-07, at most 1.0e-05\nfree 4.0e-06" in page.text
    )
    for said in (PROMPT, "seed 3, onnxruntime-cpu", "45.1 dB, at least 40", "reference", "exported", "difference"):
        assert said in page.text
    for said in ("steps", "20", "3", "4", "reason", "sums in another order", "0a1b" * 16, "none"):
        assert said in page.texts
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def test_costs_are_stated(tmp_path: Path) -> None:
    assert "Costs" not in written(tmp_path, certificate()).texts
    costs = (
        ShortcutCost(BACKENDS[0], "deep cache 3", PROMPT, 7, 32.46),
        ShortcutCost(BACKENDS[1], "deep cache 3", PROMPT, 7, math.inf),
    )
    page = written(tmp_path, replace(certificate(), costs=costs))
    assert "Within tolerance" in page.text
    for said in ("Costs", "deep cache 3", *BACKENDS, PROMPT, "7", "32.5 dB", "identical"):
        assert said in page.texts


def test_pictures_are_inside_and_unchanged(tmp_path: Path) -> None:
    one = pair()
    page = written(tmp_path, certificate(), one)
    images = page.all("img")
    shown = []
    for image in images:
        head, data = image["src"].split(",")
        assert head == "data:image/png;base64"
        shown.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))))
        assert PROMPT in image["alt"]
    np.testing.assert_array_equal(shown, [one.reference, one.found, one.found - one.reference])


def test_difference_has_no_sign(tmp_path: Path) -> None:
    one = pair()
    there = written(tmp_path, certificate(), one).all("img")[2]["src"]
    back = replace(one, reference=one.found, found=one.reference)
    assert written(tmp_path, certificate(), back).all("img")[2]["src"] == there


def test_nothing_is_fetched(tmp_path: Path) -> None:
    page = written(tmp_path, failing(), pair())
    assert "://" not in page.html
    assert not re.search(r"@import|url\(|src(set)?=\"(?!data:)|\bfetch\b|XMLHttpRequest", page.html)
    for _, attributes in page.elements:
        for name in {"src", "href", "xlink:href", "srcset", "action", "data"} & set(attributes):
            assert attributes[name].startswith(("data:", "#"))
    (policy,) = [one["content"] for one in page.all("meta") if one.get("http-equiv")]
    assert policy.startswith("default-src 'none'")


def test_user_text_is_only_text(tmp_path: Path) -> None:
    text = HOSTILE.encode("utf-8", "replace").decode()
    given = certificate(**{HOSTILE: [HOSTILE, {HOSTILE: HOSTILE}]})
    figures = changed(given.figures, 0, component=HOSTILE, backend=HOSTILE, case=HOSTILE, output=HOSTILE, relative=1.0)
    drifts = tuple(replace(row, backend=HOSTILE) for row in given.drifts)
    pictures = changed(given.pictures, 0, prompt=HOSTILE, backend=HOSTILE)
    hostile = replace(given, figures=figures, drifts=drifts, pictures=pictures)
    page = written(tmp_path, hostile, pair(HOSTILE, HOSTILE))
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == 3
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.text.count(text) > 10
    assert all(text in image["alt"] for image in page.all("img"))


def test_failures_come_first(tmp_path: Path) -> None:
    given = failing()
    page = written(tmp_path, given, pair())
    assert "Past tolerance" in page.text
    assert "6 past tolerance, of 18 figures, 40 rows and 1 image." in page.text
    places = [page.texts.index(line) for line in given.failures]
    assert places == sorted(places)
    assert places[-1] < page.texts.index("Components")
    assert f"and {len(given.failures) - certificate_html.SHOWN} more" in page.texts
    assert "unet" in page.texts[: places[0]]  # where it began
    assert page.texts.count("✗ past") == 3 + 3 + 2 + 1  # the worst, all figures, rows, picture
    opened = [one for one in page.all("details") if "open" in one]
    assert len(opened) == 3  # the component and backend of each figure that failed


def test_what_is_no_number_is_the_worst(tmp_path: Path) -> None:
    page = written(tmp_path, failing(), pair())
    worst = page.texts[page.texts.index("Components, at worst") :]
    assert worst[1:3] == ["NaN", "unet, tensorrt-fp16"]
    assert worst[worst.index("Rows, at worst") + 1] in ("NaN", "infinite")
    assert worst[worst.index("Images, at worst") + 1] == "20.5 dB"
    # a tile, the worst and its share, four numbers of a figure and one of another, a row and its tile
    assert page.texts.count("NaN") == 1 + 2 + 4 + 1 + 2
    assert page.texts.count("infinite") == 2 + 3 + 1  # the worst and its share, three numbers, a row
    assert "needs scikit-image" in page.texts
    points = [one["points"] for one in page.all("polyline")]
    assert not re.search("nan|inf", "".join(points))
    assert len([one for one in page.all("use") if one["href"] == "#over"]) == 3


def test_equal_pictures_are_identical(tmp_path: Path) -> None:
    good = certificate()
    page = written(tmp_path, replace(good, pictures=changed(good.pictures, 0, psnr=math.inf, off=0.0)))
    assert "identical, at least 40" in page.texts
    assert "0 %" in page.texts
    assert not page.all("img")  # measured, yet no pair was given


@pytest.mark.parametrize("values", [(0.0, 0.0, 0.0), (math.nan, math.inf, math.inf), (5e-324, 1.0, 1e300)])
def test_extreme_rows_are_drawn(tmp_path: Path, values: tuple[float, float, float]) -> None:
    row = RowError("cpu", 0, 999.0, *values, 0.0, 0.0, 0.0)
    page = written(tmp_path, replace(certificate(), drifts=(row,)))
    numbers = [float(one) for line in page.all("polyline") for one in re.split("[ ,]", line["points"])]
    assert all(0 <= one <= 100 for one in numbers)
    assert 2 <= len([one for one in page.all("text") if one.get("text-anchor") == "end"]) <= 9


def test_zero_lies_below_the_least(tmp_path: Path) -> None:
    good = certificate()
    marks = []
    for drifts in (good.drifts, changed(good.drifts, 0, stepped=0.0)):
        page = written(tmp_path, replace(good, drifts=drifts))
        heights = [
            float(one["y"].rstrip("%")) for one in page.all("use") if one.get("class") == "mark stepped" and "y" in one
        ]
        marks.append((heights[0], heights[1], page.texts.count("0")))
    assert marks[0] == (100.0, 100.0, marks[1][2] - 2)  # 1e-7 is a whole power; the tick and the table say 0
    assert marks[1][0] == 100.0
    assert marks[1][1] < 90.0


def test_nothing_measured_proves_nothing(tmp_path: Path) -> None:
    page = written(tmp_path, Certificate((), (), (), {}))
    assert "Nothing proven" in page.texts
    assert "No component was measured." in page.texts
    assert page.texts.count("not measured") == 3
    assert not page.all("h2")


def test_table_and_headings_can_be_read_aloud(tmp_path: Path) -> None:
    page = written(tmp_path, failing(), pair())
    assert all(one.get("scope") in ("row", "col") for one in page.all("th"))
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch(r"h\d", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(
        one.get("aria-label") or one.get("aria-hidden") or "preserveaspectratio" in one for one in page.all("svg")
    )
    assert all(one.get("aria-label") for one in page.all("input"))
    assert page.all("html")[0]["lang"] == "en"


def test_failed_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(tmp_path / "report.html", certificate(), [pair()])
    old = (tmp_path / "report.html").read_bytes()
    monkeypatch.setattr(certificate_html, "_about", lambda about: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(tmp_path / "report.html", failing(), [])
    assert (tmp_path / "report.html").read_bytes() == old


def test_tag_escapes_all_but_tags() -> None:
    assert tag("p", "a < b", [tag("b", "&"), '"'], class_='x"y', aria_label=None) == (
        '<p class="x&quot;y">a &lt; b<b>&amp;</b>&quot;</p>'
    )
    assert tag("img", alt="") == '<img alt="">'


@pytest.mark.parametrize(("length", "most", "expected"), [(0, 8, 1), (8, 8, 1), (9, 8, 2), (20, 8, 5), (50, 8, 10)])
def test_steps_of_an_axis(length: int, most: int, expected: int) -> None:
    assert step(length, most) == expected
    assert step(1000, 8) == 200
