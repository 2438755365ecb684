"""The page draws what the pipeline draws, shows it row by row, and says what is wrong."""

import json
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import Request
from ldmrt.runtime.bundle.stages import GUIDANCE_SCALE
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.serve.http.access import digest
from ldmrt.serve.jobs.job import Cancelled

from ..conftest import Running
from .conftest import DESKTOP, PHONE, Holding, Open, drawn, pixels_of, ready


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_an_image_is_the_pipelines_own(visit: Open, pipeline: Pipeline, size: tuple[int, int]) -> None:
    page = ready(visit(size))
    page.get_by_label("Seed").fill(str(2**64 - 1))  # more than JavaScript's numbers hold
    page.get_by_label("Steps").fill("4")
    page.get_by_label("Guidance").fill("3.5")
    page.get_by_label("Name").select_option("dpmpp_2m_karras")
    page.get_by_label("Negative prompt").fill("grey")
    page.get_by_label("Prompt", exact=True).fill("two pears")
    page.keyboard.press("Enter")
    card = drawn(page)
    asked = Request("two pears", negative_prompt="grey", seed=2**64 - 1, num_inference_steps=4, guidance_scale=3.5,
                    scheduler="dpmpp_2m_karras")  # fmt: skip
    right = pipeline.generate(asked).pixels[0]
    np.testing.assert_array_equal(pixels_of(page, card), right)
    assert page.locator("#preview").get_attribute("src") == card.locator("img").get_attribute("src")
    assert page.locator("#preview").get_attribute("alt") == f"two pears, seed {2**64 - 1}"
    assert card.locator("dd").all_inner_texts()[:2] == [str(2**64 - 1), "dpmpp_2m_karras"]
    shown = page.locator("#preview").evaluate("""image => {
        const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight), c = canvas.getContext("2d");
        c.drawImage(image, 0, 0);
        return [...c.getImageData(0, 0, canvas.width, canvas.height).data];
    }""")
    np.testing.assert_array_equal(np.array(shown).reshape(*right.shape[:2], 4)[..., :3], right)


def test_defaults_are_those_of_a_request(visit: Open) -> None:
    page, plain = ready(visit()), Request("")
    with page.expect_request("**/v1/requests") as sent:
        page.get_by_role("button", name="Draw").click()
    body = json.loads(sent.value.post_data)
    assert (body["num_inference_steps"], body["guidance_scale"]) == (plain.num_inference_steps, GUIDANCE_SCALE)
    assert float(page.locator("#strength").input_value()) == plain.strength
    assert 0 <= body["seed"] < 2**32
    drawn(page)


def test_several_images_and_the_seed_again(visit: Open) -> None:
    page = ready(visit())
    page.get_by_label("Steps").fill("2")
    page.get_by_label("Images").fill("2")
    page.get_by_role("button", name="Draw").click()
    drawn(page, 2)
    last, first = (int(text) for text in page.locator("#gallery dd:nth-of-type(1)").all_inner_texts())
    assert last == first + 1
    page.get_by_role("button", name="Again").click()
    assert page.get_by_label("Seed").input_value() == str(first)
    page.get_by_role("button", name="Random").click()
    assert page.get_by_label("Seed").input_value() == ""


def test_rows_are_shown_while_they_run(visit: Open, holding: Holding) -> None:
    page = ready(visit())
    page.get_by_label("Steps").fill("500")
    page.get_by_label("Prompt", exact=True).fill("a pear")
    page.keyboard.press("Enter")
    assert holding.begun.wait(30)
    preview = page.locator("#preview[src^='data:image/png']")
    for _ in range(400):  # rows before the page listens are not shown
        if preview.count() == 0:
            holding.next_row()
            page.wait_for_timeout(20)
    assert preview.count() == 1
    assert "of 500" in page.locator("#row").inner_text()
    assert 0 < page.locator("progress").evaluate("bar => bar.value") < 500
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector("#cancel:not([disabled])")
    holding.let_go()
    page.get_by_text("Cancelled.").wait_for()
    assert page.get_by_role("button", name="Cancel").is_disabled()
    assert page.locator("#draw").get_attribute("aria-disabled") == "false"
    assert page.locator("#gallery li").count() == 0
    assert page.evaluate("document.activeElement.id") == "draw"  # not lost with the button that is disabled


def test_a_page_that_is_left_gives_its_request_up(visit: Open, holding: Holding) -> None:
    page = ready(visit())
    page.get_by_label("Steps").fill("500")
    page.get_by_role("button", name="Draw").click()
    assert holding.begun.wait(30)
    page.locator("#status").get_by_text("Drawing").wait_for()
    page.goto("about:blank")
    assert holding.job is not None
    for _ in range(500):
        if not holding.job.given_up:
            page.wait_for_timeout(20)
    holding.let_go()
    with pytest.raises(Cancelled, match="cancelled by its caller"):
        holding.job.result(30)


@pytest.mark.parametrize(
    ("certificate", "kind", "text"),
    [
        (None, "", "no certificate"),
        ({"within": True, "failures": []}, "within", "✓ within tolerance"),
        ({"within": False, "failures": ["unet: 1e-3", "decoder: 1e-2"]}, "past", "✗ unet: 1e-3"),
    ],
)
def test_the_verdict_stands_beside_the_model(visit: Open, certificate: Any, kind: str, text: str) -> None:
    page = ready(visit())

    def changed(route: Any) -> None:
        models = route.fetch().json()
        models["data"][0]["certificate"] = certificate
        route.fulfill(json=models)

    page.route("**/v1/models", changed)
    page.reload()
    ready(page)
    assert page.locator("#verdict").inner_text() == text
    assert page.locator("#verdict").get_attribute("class").split() == ["verdict", *kind.split()]


def told(**said: Any) -> str:
    return f"event: stage\ndata: {json.dumps({'row': 0, 'rows': 4, **said})}\n\n"


@pytest.mark.parametrize(
    ("events", "status", "alert"),
    [
        (told(stage="waiting", position=2) + told(stage="cancelled"), "Cancelled.", ""),
        (told(stage="waiting", position=2), "", "The connection was lost."),
        (told(stage="failed", error={"message": "not finite"}), "", "not finite"),
    ],
)
def test_what_the_server_says_of_a_request(visit: Open, events: str, status: str, alert: str) -> None:
    page = ready(visit())
    page.route("**/events?*", lambda route: route.fulfill(body=events, content_type="text/event-stream"))
    page.evaluate("""() => {
        window.seen = [];
        new MutationObserver(() => seen.push(document.getElementById("status").textContent))
            .observe(document.getElementById("status"), {childList: true, subtree: true});
    }""")
    page.get_by_label("Steps").fill("2")
    page.get_by_role("button", name="Draw").click()
    page.wait_for_selector("#draw[aria-disabled=false]")
    assert page.get_by_role("status").inner_text() == status
    assert page.get_by_role("alert").inner_text() == alert
    assert ("2 before this one." in page.evaluate("seen")) == ("waiting" in events)


def test_errors_are_said(visit: Open) -> None:
    """A later request that works takes the words away."""
    page = ready(visit(may_say="422"))
    page.get_by_label("Prompt", exact=True).fill("a" * 10_001)
    page.get_by_role("button", name="Draw").click()
    page.get_by_role("alert").get_by_text("too many characters of a prompt").wait_for()
    page.get_by_label("Steps").fill("2")
    page.get_by_label("Prompt", exact=True).fill("a")
    page.get_by_role("button", name="Draw").click()
    drawn(page)
    assert page.get_by_role("alert").inner_text() == ""


def test_a_server_that_does_not_answer(visit: Open) -> None:
    page = ready(visit(may_say="ERR_FAILED"))
    page.route("**/v1/requests", lambda route: route.abort())
    page.get_by_role("button", name="Draw").click()
    page.get_by_role("alert").get_by_text("The server does not answer.").wait_for()


def test_a_server_with_keys(visit: Open, pipeline: Pipeline) -> None:
    """The page needs none; it asks for one, again where it is wrong, and keeps it until the tab is closed."""
    server = Running(pipeline, keys={digest("secret"): "ada"})
    page = visit(PHONE, url=server.url, may_say="401")
    try:
        for key, text in (("wrong", "This server asks for a key."), ("secret", "The server does not know this key.")):
            page.get_by_role("dialog").get_by_text(text).wait_for()
            page.get_by_label("Key", exact=True).fill(key)
            page.keyboard.press("Enter")
        ready(page)
        page.reload()
        ready(page)
        assert not page.get_by_role("dialog").is_visible()
        page.get_by_label("Steps").fill("2")
        page.get_by_role("button", name="Draw").click()
        assert pixels_of(page, drawn(page)).shape[-1] == 3
        assert page.evaluate("[sessionStorage.length, localStorage.length]") == [1, 0]
    finally:
        page.goto("about:blank")
        server.stop()
