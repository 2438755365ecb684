"""The page in a browser, before the server that the tests of serving share."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime.samplers.loop import State
from ldmrt.serve.jobs.job import Job

from ..conftest import Running

PHONE, DESKTOP = (390, 844), (1440, 900)
Open = Callable[..., Any]


@dataclass
class Heard:
    """What the browser asked for and said."""

    requests: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


@pytest.fixture
def visit(browser: Any, running: Running) -> Iterator[Open]:
    """Open the page in a window of a size; at the end nothing went wrong, and nothing was asked for elsewhere."""
    opened: list[tuple[Any, Heard, str]] = []

    def visit(
        size: tuple[int, int] = DESKTOP, scheme: str = "light", url: str = running.url, may_say: str = "never"
    ) -> Any:
        page, heard = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme), Heard()
        opened.append((page, heard, url))
        page.set_default_timeout(20_000)
        page.on("request", lambda request: heard.requests.append(request.url))
        page.on("console", lambda message: may_say in message.text or heard.said.append(message.text))
        page.on("pageerror", lambda error: heard.said.append(str(error)))
        page.goto(url)
        return page

    yield visit
    for page, heard, url in opened:
        inside = (url, f"blob:{url}", "data:")
        assert [asked for asked in heard.requests if not asked.startswith(inside)] == []
        assert heard.said == []
        page.close()


def ready(page: Any) -> Any:
    """Return the page when it knows its model and shows its plot."""
    page.wait_for_selector("#plot polyline", state="attached")
    return page


def drawn(page: Any, images: int = 1) -> Any:
    """Return the card of the last image when there are so many."""
    page.wait_for_selector(f"#gallery li:nth-child({images})")
    return page.locator("#gallery li").first


def pixels_of(page: Any, card: Any) -> np.ndarray:
    """The pixels of the file that a card's link downloads."""
    with page.expect_download() as download:
        card.get_by_role("link", name="Download").click()
    return np.asarray(Image.open(Path(download.value.path())))


def png(pixels: np.ndarray, **options: Any) -> dict[str, Any]:
    """A PNG file as Playwright hands it to a page."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return {"name": "image.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


class Holding:
    """Holds jobs after each of their rows until it is let go on."""

    def __init__(self) -> None:
        self.begun, self._may, self._free = Event(), Semaphore(0), False
        self.job: Job | None = None  # the last that was held

    def __call__(self, job: Job, state: State | None) -> None:
        if state is not None and not self._free:
            self.job = job
            self.begun.set()
            assert self._may.acquire(timeout=30)

    def next_row(self) -> None:
        self._may.release()

    def let_go(self) -> None:
        self._free = True
        self._may.release()


@pytest.fixture
def holding(running: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Holding]:
    """What holds the requests that are sent to the server."""
    made, submit = Holding(), running.service.submit
    monkeypatch.setattr(running.service, "submit", lambda *given, **words: submit(*given, **{**words, "watcher": made}))
    yield made
    made.let_go()
