"""The page that shows a certificate, in a real browser."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime.bundle.certificate import Certificate
from ldmrt.tools.reports import certificate_html
from ldmrt.tools.reports.certificate_html import Pair, write_report

from .test_report import HOSTILE, certificate, changed, failing, pair

PHONE, DESKTOP = (390, 844), (1280, 900)


@dataclass
class Shown:
    """A report in the browser, and what the browser said about it."""

    page: Any
    requests: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Write a report and open it in a window of the given size."""
    pages = []

    def show(given: Certificate, pairs: list[Pair], size: tuple[int, int], scheme: str = "light") -> Shown:
        path = tmp_path / "report.html"
        write_report(path, given, pairs)
        page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        shown = Shown(page)
        pages.append((shown, path.as_uri()))
        page.on("request", lambda request: shown.requests.append(request.url))
        page.on("console", lambda message: shown.said.append(message.text))
        page.on("pageerror", lambda error: shown.said.append(str(error)))
        page.on("dialog", lambda dialog: shown.said.append(dialog.message))
        page.goto(path.as_uri())
        return shown

    yield show
    for shown, uri in pages:  # whatever a test did, the page fetched nothing and nothing went wrong
        assert [url for url in shown.requests if not url.startswith("data:")] == [uri]
        assert shown.said == []
        shown.page.close()


@pytest.mark.parametrize("size", [(360, 640), PHONE, DESKTOP])
@pytest.mark.parametrize("good", [True, False])
def test_verdict_is_on_the_first_screen(show: Any, size: tuple[int, int], good: bool) -> None:
    page = show(certificate() if good else failing(), [pair()], size).page
    for selector in ("h1", ".verdict > svg") if good else ("h1", ".verdict > svg", ".failures li:first-child"):
        box = page.locator(selector).first.bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= size[1]


@pytest.mark.parametrize("size", [(320, 640), PHONE, DESKTOP])
def test_page_never_scrolls_sideways(show: Any, size: tuple[int, int]) -> None:
    long = "x" * 300
    given = replace(failing(), about={"hash": "0a1b" * 16, "deep": {"er": {"still": long}}})
    given = replace(given, pictures=changed(given.pictures, 0, prompt=long))
    page = show(given, [pair(prompt=long)], size).page
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth") == size[0]
    # nothing is cut off either: what is wider lies in a box that scrolls
    out = """[...document.querySelectorAll('body *')].filter(one => !one.closest('.wide, svg')
             && one.getBoundingClientRect().right > innerWidth + 0.5).map(one => one.outerHTML.slice(0, 80))"""
    assert page.evaluate(out) == []


def test_slider_amplifies_exactly(show: Any) -> None:
    page = show(certificate(), [pair()], DESKTOP).page

    def pixels() -> tuple[int, ...]:
        shot = Image.open(io.BytesIO(page.locator(".amplified img").screenshot())).convert("RGB")
        return shot.getpixel((shot.width // 4, shot.height // 2)) + shot.getpixel(
            (shot.width * 3 // 4, shot.height // 2)
        )

    slider, output = page.locator("input[type=range]"), page.locator("output")
    assert pixels() == (2 * 2**certificate_html.GAIN,) * 3 + (0, 0, 0)
    slider.focus()
    for key, gain in (("End", 64), ("ArrowLeft", 32), ("Home", 1), ("ArrowRight", 2)):
        page.keyboard.press(key)
        assert output.inner_text() == f"{gain}×"
        assert slider.evaluate("one => one.ariaValueText") == f"{gain} times"
        assert pixels() == (2 * gain,) * 3 + (0, 0, 0)


def test_hostile_text_does_not_run(show: Any) -> None:
    given = certificate(prompt=HOSTILE)
    page = show(replace(given, pictures=changed(given.pictures, 0, prompt=HOSTILE)), [pair(prompt=HOSTILE)], PHONE).page
    assert page.title() == "Within tolerance: ldmrt verify"
    assert page.locator("article h3").inner_text() == HOSTILE.encode("utf-8", "replace").decode()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(show: Any, scheme: str) -> None:
    page = show(failing(), [pair()], DESKTOP, scheme).page
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    seen = colors(page)
    assert len(seen) > 10
    dark = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.2
    assert dark == (scheme == "dark")
    for name, colour, behind in seen:
        low, high = sorted((luminance(colour), luminance(behind)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (name, colour, behind)  # WCAG 2.2, 1.4.3 (AA)


def colors(page: Any) -> set[tuple[str, str, str]]:
    """The elements that show text: their tags, the text's color and what is behind it."""
    found = page.evaluate("""() => [...document.querySelectorAll('body *')]
        .filter(one => [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
        .filter(one => one.checkVisibility())
        .map(one => {
            const colour = getComputedStyle(one)[one.closest('svg') ? 'fill' : 'color'];
            const behind = node => getComputedStyle(node).backgroundColor;
            let paper = one;
            while (behind(paper) === 'rgba(0, 0, 0, 0)') paper = paper.parentElement;
            return [one.tagName, colour, behind(paper)];
        })""")
    return {tuple(one) for one in found if one[0] != "title"}


def luminance(colour: str) -> float:
    """WCAG's relative luminance of "rgb(r, g, b)"."""
    channels = np.array([float(one) for one in re.findall(r"[\d.]+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("size", [(360, 640), DESKTOP])
def test_plot_keeps_its_type_and_fits(show: Any, size: tuple[int, int]) -> None:
    page = show(certificate(), [], size).page
    plot = page.locator(".plot").first.bounding_box()
    for text in page.locator(".plot").first.locator("text").all():
        box = text.bounding_box()
        assert box["height"] >= 12
        assert plot["x"] <= box["x"]
        assert box["x"] + box["width"] <= size[0]
        assert plot["y"] <= box["y"]
        assert box["y"] + box["height"] <= plot["y"] + plot["height"]
    assert page.locator(".band").count() == 40
    assert page.locator(".band title").first.text_content().startswith("row 0, t = 999\nforced 3.0e-07")


def test_paper_shows_what_is_folded(show: Any) -> None:
    page = show(failing(), [pair()], (720, 900)).page
    closed = page.locator("details:not([open])").count()
    assert closed > 0
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not page.locator("input").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() == closed
