"""Images that are given to the page: those that fill the form, those to start from, and masks."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldmrt.runtime.pipeline.pipeline import Pipeline

from .conftest import DESKTOP, PHONE, Open, drawn, pixels_of, png, ready

PARAMETERS = {
    "ldmrt": "0.1.0", "bundle": "tiny", "prompt": "zwei Äpfel 🍎", "negative_prompt": "grau", "seed": 2**64 - 2,
    "steps": 3, "guidance": 2.5, "scheduler": "ddim", "eta": 0.5, "width": 32, "height": 48,
}  # fmt: skip
GREY = np.full((64, 96, 3), 128, np.uint8)


def with_parameters(compressed: bool) -> dict[str, Any]:
    info = PngInfo()
    info.add_itxt("Comment", "another chunk")
    info.add_itxt("ldmrt", json.dumps(PARAMETERS, ensure_ascii=False), zip=compressed)
    return png(GREY, pnginfo=info)


def drop(page: Any, file: dict[str, Any]) -> None:
    """Drop a file onto the page."""
    transfer = page.evaluate_handle(
        """([text, name, type]) => {
            const transfer = new DataTransfer(), bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
            transfer.items.add(new File([bytes], name, {type}));
            return transfer;
        }""",
        [base64.b64encode(file["buffer"]).decode(), file["name"], file["mimeType"]],
    )
    for kind in ("dragover", "drop"):
        page.dispatch_event("#prompt", kind, {"dataTransfer": transfer})


def sent(page: Any) -> dict[str, Any]:
    """Press the button, and return what is sent."""
    page.get_by_label("Steps").fill("2")
    before = page.locator("#gallery li").count()
    with page.expect_request("**/v1/requests") as request:
        page.get_by_role("button", name="Draw").click()
    drawn(page, before + 1)
    page.wait_for_selector("#draw[aria-disabled=false]")
    body: dict[str, Any] = json.loads(request.value.post_data)
    return body


def decoded(url: str) -> np.ndarray:
    """The image in a data URL, grey."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("L"))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_dropped_image_fills_the_form(visit: Open, compressed: bool) -> None:
    page = ready(visit())
    page.get_by_label("Negative prompt").fill("left from before")
    drop(page, with_parameters(compressed))
    page.get_by_text("The form has the settings of the image.").wait_for()
    fields = ("prompt", "negative", "sampler", "steps", "guidance", "width", "height", "seed")
    values = [page.locator(f"#{name}").input_value() for name in fields]
    assert values == ["zwei Äpfel 🍎", "grau", "ddim", "3", "2.5", "32", "48", str(2**64 - 2)]
    assert page.get_by_text("Also of the file: eta 0.5.").is_visible()
    assert not page.locator("#start").is_visible()
    body = sent(page)
    assert (body["seed"], body["eta"], body["scheduler"]) == (2**64 - 2, 0.5, "ddim")
    page.get_by_role("button", name="Remove", exact=True).click()
    assert "eta" not in sent(page)


def test_settings_of_an_image_draw_it_again(visit: Open) -> None:
    page = ready(visit(PHONE))
    page.get_by_label("Steps").fill("3")
    page.get_by_label("Name").select_option("euler_a")
    page.get_by_label("Prompt", exact=True).fill("a pear")
    page.keyboard.press("Enter")
    first = pixels_of(page, drawn(page))
    page.get_by_label("Name").select_option("lcm")
    page.get_by_label("Prompt", exact=True).fill("")
    page.get_by_label("Steps").fill("9")
    page.get_by_role("button", name="Use settings").click()
    page.get_by_text("The form has the settings of the image.").wait_for()
    page.get_by_label("Prompt", exact=True).press("Enter")
    np.testing.assert_array_equal(pixels_of(page, drawn(page, 2)), first)


def test_an_image_without_parameters_is_started_from(visit: Open) -> None:
    page = ready(visit())
    file = png(GREY)
    page.locator("#file").set_input_files([file])
    page.get_by_role("application", name="Mask").wait_for()
    page.get_by_label("Strength").fill("0.5")
    body = sent(page)
    assert base64.b64decode(body["image"].partition(",")[2]) == file["buffer"]
    assert body["strength"] == 0.5
    assert "mask_image" not in body
    page.get_by_role("button", name="Remove image").click()
    assert not {"image", "strength"} & sent(page).keys()


def test_a_file_that_is_no_image(visit: Open) -> None:
    page = ready(visit())
    drop(page, {"name": "a.txt", "mimeType": "text/plain", "buffer": b"hello"})
    page.get_by_role("alert").get_by_text("The file is no image that this browser reads.").wait_for()
    assert not page.locator("#start").is_visible()


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_a_mask_is_painted_and_erased(visit: Open, pipeline: Pipeline, size: tuple[int, int]) -> None:
    """From a quarter to three quarters of the width, at half of the height; then its right half is erased."""
    page = ready(visit(size))
    page.locator("#file").set_input_files([png(GREY)])
    mask = page.get_by_role("application", name="Mask")
    mask.scroll_into_view_if_needed()
    box = mask.bounding_box()

    def stroke(begin: float, end: float) -> None:
        page.mouse.move(box["x"] + begin * box["width"], box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + end * box["width"], box["y"] + box["height"] / 2, steps=5)
        page.mouse.up()

    def url() -> np.ndarray:
        text = page.evaluate("document.querySelector('#mask canvas').toDataURL()")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2]))))[..., 3]

    stroke(0.25, 0.75)
    painted = url()
    assert painted.shape == GREY.shape[:2]
    middle = painted[32] > 127
    # the brush is 12 % of the width wide, and round: 6 % more at each end; a pixel or two are the rounding of the mouse
    np.testing.assert_allclose(np.flatnonzero(middle)[[0, -1]], [0.19 * 96, 0.81 * 96 - 1], atol=2)
    np.testing.assert_allclose(np.flatnonzero(painted[:, 48] > 127)[[0, -1]], [32 - 0.06 * 96, 32 + 0.06 * 96], atol=2)
    page.get_by_label("Erase").check()
    page.get_by_label("Brush").fill("30")
    mask.scroll_into_view_if_needed()
    box = mask.bounding_box()
    stroke(0.75, 0.75)
    assert not url()[32, 66:].any()
    assert url()[32, 30] > 127
    body = sent(page)
    np.testing.assert_array_equal(decoded(body["mask_image"]) == 255, url() > 127)
    assert set(np.unique(decoded(body["mask_image"]))) == {0, 255}
    page.get_by_role("button", name="Clear mask").click()
    assert "mask_image" not in sent(page)


def test_a_mask_by_keyboard_and_from_a_file(visit: Open) -> None:
    page = ready(visit())
    page.locator("#file").set_input_files([png(GREY)])
    mask = page.get_by_role("application", name="Mask")
    mask.focus()
    page.keyboard.press("Space")
    assert page.get_by_role("status").inner_text() == "The brush is down."
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    for _ in range(6):
        page.keyboard.press("ArrowUp")  # which paints no more
    told = decoded(sent(page)["mask_image"])
    painted = np.argwhere(told == 255)
    # from the middle to 0.2 of the width further, 6 % of it around; edges are smooth, so a pixel may be on either side
    np.testing.assert_allclose(painted.min(0), [32 - 5.76, 48 - 5.76], atol=1)
    np.testing.assert_allclose(painted.max(0), [31 + 5.76, 47 + 0.2 * 96 + 5.76], atol=1)
    half = np.zeros((64, 96), np.uint8)
    half[:, :48] = 255
    page.locator("#mask-file").set_input_files([png(half)])
    page.get_by_role("status").get_by_text("The mask is that of the file.").wait_for()
    np.testing.assert_array_equal(decoded(sent(page)["mask_image"]), half)
