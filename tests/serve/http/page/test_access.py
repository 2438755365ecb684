"""The page works by keyboard, for a screen reader, on a phone, in light and dark."""

from typing import Any

import numpy as np
import pytest

from ....tools.reports.test_report_browser import colors, luminance
from .conftest import DESKTOP, PHONE, Open, drawn, png, ready

SIZES = [(320, 640), PHONE, (1000, 800), DESKTOP]
GREY = np.full((64, 96, 3), 128, np.uint8)
# What Tab comes to, with a start image
STOPS = ["model", "prompt", "negative", "draw", "sampler", "steps", "guidance", "width", "height", "seed", "random",
         "count", "file", "strength", "mask", "brush", "erase", "clear", "remove", "mask-file"]  # fmt: skip


def with_start_image(page: Any) -> Any:
    page.locator("#file").set_input_files([png(GREY)])
    page.get_by_role("application", name="Mask").wait_for()
    return page


def test_every_control_has_a_name(visit: Open) -> None:
    page = with_start_image(ready(visit()))
    page.get_by_label("Steps").fill("2")
    page.get_by_role("button", name="Draw").click()
    drawn(page)
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    names = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree
        if not node["ignored"]
        and any(one["name"] == "focusable" and one["value"]["value"] for one in node.get("properties", []))
        and node["role"]["value"] != "RootWebArea"
    ]
    assert len(names) >= len(STOPS)
    assert [role for role, name in names if not name.strip()] == []
    roles = {node["role"]["value"]: node.get("name", {}).get("value") for node in tree if not node["ignored"]}
    assert {"banner", "main", "alert", "status"} <= roles.keys()
    assert roles["progressbar" if "progressbar" in roles else "ProgressIndicator"] == "Progress"
    assert page.locator("#plot").get_attribute("aria-label").startswith("noise level ")


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_everything_is_reached_by_keyboard(visit: Open, size: tuple[int, int]) -> None:
    """In the order of the form; each stop shows that it has the focus. Enter in the prompt then draws."""
    page = with_start_image(ready(visit(size)))
    page.evaluate("document.activeElement.blur()")
    page.locator("h1").click()
    seen = []
    for _ in STOPS:
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id"))
        shown = "one => [one, one.closest('.file')].some(e => e && getComputedStyle(e).outlineStyle === 'solid')"
        assert page.locator("*:focus").evaluate(shown), seen
    assert seen == STOPS
    page.keyboard.press("Tab")
    for _ in STOPS[STOPS.index("steps") :]:
        page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.id") == "steps"
    page.keyboard.type("2")
    for _ in range(4):
        page.keyboard.press("Shift+Tab")
    page.keyboard.type("a pear")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("on a plate")
    page.keyboard.press("Enter")
    drawn(page)
    assert page.locator("#preview").get_attribute("alt").startswith("a pear\non a plate, seed")
    assert page.evaluate("document.activeElement.id") == "prompt"


@pytest.mark.parametrize("size", SIZES)
def test_page_never_scrolls_sideways(visit: Open, size: tuple[int, int]) -> None:
    page = with_start_image(ready(visit(size)))
    page.get_by_label("Steps").fill("2")
    page.get_by_label("Name").select_option("dpmpp_2m_sde_exponential")
    page.get_by_label("Seed").fill("18446744073709551615")
    page.get_by_role("button", name="Draw").click()
    drawn(page)
    page.locator("#alert").evaluate("one => one.textContent = 'x'.repeat(300)")
    page.locator("#verdict").evaluate("one => one.textContent = 'y'.repeat(300)")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth") == size[0]
    out = """[...document.querySelectorAll('body *')].filter(one => one.checkVisibility()
             && !one.closest('svg, .unseen')
             && one.getBoundingClientRect().right > innerWidth + 0.5).map(one => one.outerHTML.slice(0, 80))"""
    assert page.evaluate(out) == []


def test_the_columns_use_a_wide_window(visit: Open) -> None:
    """Form, image and gallery stand side by side, and the image is the largest."""
    page = ready(visit(DESKTOP))
    boxes = [page.locator(name).bounding_box() for name in (".words", ".now", ".drawn")]
    rights = [box["x"] + box["width"] for box in boxes]
    assert rights[0] < boxes[1]["x"]
    assert rights[1] < boxes[2]["x"]
    assert rights[2] > DESKTOP[0] - 40
    assert boxes[1]["width"] == max(box["width"] for box in boxes)


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_nothing_moves_when_an_image_is_drawn(visit: Open, size: tuple[int, int]) -> None:
    page = visit(size)
    places = """['.settings', '#stage', 'progress', '.drawn h2'].map(each => {
        const box = document.querySelector(each).getBoundingClientRect();
        return [box.x, box.y + scrollY, box.width];
    })"""
    ready(page)
    before = page.evaluate(places)
    page.get_by_label("Steps").fill("2")
    page.get_by_role("button", name="Draw").click()
    drawn(page)
    assert page.evaluate(places) == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(visit: Open, scheme: str) -> None:
    page = with_start_image(ready(visit(DESKTOP, scheme)))
    page.get_by_label("Steps").fill("2")
    page.get_by_role("button", name="Draw").click()
    drawn(page)
    page.locator("#alert").evaluate("one => one.textContent = 'wrong'")
    seen = colors(page)
    assert len(seen) > 10
    dark = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.2
    assert dark == (scheme == "dark")
    for name, color, behind in seen:
        low, high = sorted((luminance(color), luminance(behind)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (name, color, behind)  # WCAG 2.2, 1.4.3 (AA)
