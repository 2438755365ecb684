"""What rows predict is decoded once for all who watch, and holds up no request."""

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from numpy.typing import NDArray

from ldmrt.runtime import Request
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.samplers.loop import State
from ldmrt.runtime.samplers.plan import Latents
from ldmrt.serve.jobs.job import Job
from ldmrt.serve.jobs.previews import Previews, decoded
from ldmrt.serve.jobs.service import Service
from ldmrt.serve.models.models import fixed

STEPS = 4
Seen = list[tuple[list[bytes], "Future[list[bytes]]"]]  # what a row predicts, and what is decoded of it


class Decoding:
    """Decodes latents to their bytes; it notes each call, and waits in each until it may go on."""

    def __init__(self) -> None:
        self.calls: list[Latents] = []
        self.fails = False
        self.may_go_on = Event()
        self.previews = Previews(self.decode)

    def decode(self, job: Job, latents: Latents, stage: str) -> list[bytes]:
        assert self.may_go_on.wait(60)
        self.calls.append(latents)
        if self.fails:
            raise ValueError("a decoder that fails")
        return [latent.tobytes() for latent in latents]


@pytest.fixture
def decoding() -> Decoding:
    return Decoding()


@pytest.fixture
def service(bundle: Path) -> Iterator[Service]:
    with open_pipeline(bundle) as pipeline:
        service = Service(fixed({"tiny": pipeline}, {"tiny": 8}))
        yield service
        service.close()


def watched(service: Service, decoding: Decoding, wanted: tuple[int, ...]) -> tuple[Job, Seen]:
    """Draw two images, watched by some who each want so many previews."""
    seen: Seen = []

    def watch(job: Job, state: State | None) -> None:
        for images in wanted if state is not None else ():
            assert state is not None
            predicted = [latent.tobytes() for latent in state.x0[:images]]
            seen.append((predicted, decoding.previews.of(job, state, images)))

    asked = Request("a pear", num_inference_steps=STEPS, num_images_per_prompt=2, scheduler="ddim")
    return service.submit(asked, watcher=watch), seen


def test_a_row_is_decoded_once_for_all(service: Service, decoding: Decoding) -> None:
    decoding.may_go_on.set()
    job, seen = watched(service, decoding, (1, 1, 1))
    job.result(60)
    assert len(seen) == 3 * STEPS
    assert len({id(files) for _, files in seen}) == STEPS
    assert len(decoding.calls) <= STEPS
    assert {len(latents) for latents in decoding.calls} == {1}


def test_a_decoder_that_takes_its_time_holds_up_nobody(service: Service, decoding: Decoding) -> None:
    """The request ends while its first row is still being decoded; rows between that one and the last are left out."""
    job, seen = watched(service, decoding, (2,))
    job.result(60)
    assert decoding.calls == []
    decoding.may_go_on.set()
    shown = [decoded(files, job) if files.cancelled() or files.result(60) else [] for _, files in seen]
    assert shown == [seen[0][0], *[[]] * (STEPS - 2), seen[-1][0]]
    assert len(shown[0]) == 2
    assert shown[0] != shown[-1]
    assert decoding.previews._last == {}


def test_previews_are_decoded_by_the_preview_decoder(preview_bundle: Path) -> None:
    """Of a model that has one; the image is the one that is drawn without previews."""
    asked = Request("a pear", num_inference_steps=STEPS, num_images_per_prompt=2, scheduler="ddim")
    seen = list[tuple[Latents, NDArray[np.uint8]]]()
    with open_pipeline(preview_bundle) as pipeline:
        service = Service(fixed({"tiny": pipeline}, {"tiny": 8}))

        def watch(job: Job, state: State | None) -> None:
            if state is not None:
                seen.append((np.array(state.x0), service.decode(job, state.x0, state.stage)))

        drawn = service.submit(asked, watcher=watch).result(60)
        service.close()
        np.testing.assert_array_equal(drawn.pixels, pipeline.generate(asked).pixels)
        assert len(seen) == STEPS
        for x0, images in seen:
            np.testing.assert_array_equal(images, pipeline.preview(x0))
            assert (images != pipeline.decode(x0)).any()


def test_a_decoder_that_fails_ends_no_request(
    service: Service, decoding: Decoding, caplog: pytest.LogCaptureFixture
) -> None:
    decoding.fails = True
    decoding.may_go_on.set()
    job, seen = watched(service, decoding, (1,))
    job.result(60)
    assert [decoded(files, job) for _, files in seen if files.cancelled() or files.exception(60)] == [[]] * STEPS
    assert "no preview of" in caplog.text
