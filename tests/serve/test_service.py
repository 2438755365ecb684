"""A service draws the images that its pipelines draw alone, and refuses what it cannot serve."""

import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import BundleError, InvalidRequest, LdmrtError, NotFinite, Request
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.samplers.loop import State
from ldmrt.serve.batching.dispatcher import Batch
from ldmrt.serve.batching.room import rows_per_call
from ldmrt.serve.jobs.job import Cancelled, Job
from ldmrt.serve.jobs.rate import Rate
from ldmrt.serve.jobs.reloading import reload_models
from ldmrt.serve.jobs.service import OVERTAKEN, Busy, Service
from ldmrt.serve.models.models import Models, fixed

MIXED = [
    {"num_inference_steps": steps, "scheduler": scheduler, "guidance_scale": guidance, "num_images_per_prompt": images}
    for steps, scheduler, guidance, images in (
        (4, "ddim", 5.0, 1),
        (7, "dpmpp_2m_karras", 1.0, 2),
        (3, "euler_a", 3.0, 3),
        (5, "heun", 5.0, 1),
        (6, "lcm", 1.0, 1),
        (4, "unipc", 7.5, 1),
    )
]


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Iterator[Pipeline]:
    with open_pipeline(bundle) as opened:
        yield opened


@pytest.fixture
def service(pipeline: Pipeline) -> Iterator[Service]:
    made = Service(fixed({"tiny": pipeline}, {"tiny": 8}), waiting=8)
    yield made
    made.close()


def request(number: int = 0, **settings: Any) -> Request:
    return Request("a red apple", seed=number, **settings)


class Held:
    """Holds a job after its first row until it is let go."""

    def __init__(self) -> None:
        self.begun, self._go_on = Event(), Event()

    def __call__(self, job: Job, state: State | None) -> None:
        if state is not None:
            self.begun.set()
            assert self._go_on.wait(30)

    def let_go(self) -> None:
        self._go_on.set()


def held(service: Service, **settings: Any) -> tuple[Job, Held]:
    """Submit a job that is held after its first row."""
    holding = Held()
    job = service.submit(request(num_inference_steps=50, **settings), watcher=holding)
    assert holding.begun.wait(30)
    return job, holding


def test_images_do_not_depend_on_what_shares_their_batch(service: Service, pipeline: Pipeline) -> None:
    """Other samplers, steps, guidance and numbers of images: the same bytes on ONNX Runtime."""
    requests = [request(number, **MIXED[number % len(MIXED)]) for number in range(8)]
    alone = [pipeline.generate(one) for one in requests]
    jobs = [service.submit(one) for one in requests]
    for job, right in zip(jobs, alone, strict=True):
        np.testing.assert_array_equal(job.result(60).pixels, right.pixels)
        assert (job.stage, job.called) == ("done", job.calls)


def test_calls_are_shared(pipeline: Pipeline) -> None:
    """Four requests of 20 rows that run together need hardly more calls than one."""
    noted = list[Batch]()

    class Noting(Service):
        def _note(self, batch: Batch) -> None:
            noted.append(batch)

    service = Noting(fixed({"tiny": pipeline}, {"tiny": 8}))
    jobs = [service.submit(request(number, num_inference_steps=20)) for number in range(4)]
    for job in jobs:
        job.result(60)
    service.close()
    assert sum(batch.rows for batch in noted) == 4 * 2 * 20
    assert max(batch.rows for batch in noted) == 8
    assert len(noted) < 60  # 80 if each was alone; how many start together is the machine's affair


def test_rows_of_a_size(pipeline: Pipeline) -> None:
    """Images of a quarter of the pixels have four times the rows in a call."""
    side = pipeline.stage.size
    assert [rows_per_call(pipeline, size, 8) for size in ((side, side), (side // 2, side), (4 * side, 4 * side))] == [
        8, 16, 1,
    ]  # fmt: skip


def test_requests_wait_in_their_order_and_are_refused_beyond_the_queue(pipeline: Pipeline) -> None:
    service = Service(fixed({"tiny": pipeline}, {"tiny": 2}), waiting=2)
    first, holding = held(service)
    second, third = (service.submit(request(number)) for number in (1, 2))
    assert [service.position(job) for job in (first, second, third)] == [None, 0, 1]
    assert (service.running, service.waiting) == (1, 2)
    with pytest.raises(Busy, match="too many requests wait; found 2") as refused:
        service.submit(request(3))
    assert refused.value.retry_after >= 1
    holding.let_go()
    assert [job.result(60).seeds for job in (first, second, third)] == [[0], [1], [2]]
    service.close()


def test_a_short_request_overtakes_long_ones_for_a_while(pipeline: Pipeline) -> None:
    """It is due a multiple of its own time after it came, so what comes after that does not overtake it."""

    class SecondForAPixel(Rate):
        def seconds(self, work: float) -> float:
            return work

    service = Service(fixed({"tiny": pipeline}, {"tiny": 2}))
    service._rate = SecondForAPixel()
    first, holding = held(service)
    long, short = (service.submit(request(1, num_inference_steps=steps)) for steps in (40, 4))
    assert [service.position(job) for job in (long, short)] == [1, 0]
    assert long.due - long.accepted == pytest.approx(OVERTAKEN * long.calls * 2 * pipeline.stage.size**2)  # 2 rows
    holding.let_go()
    assert [job.result(60).seeds for job in (first, short, long)] == [[0], [1], [1]]
    service.close()


def test_another_size_does_not_wait(pipeline: Pipeline) -> None:
    """A small image runs while a large one is held."""
    service = Service(fixed({"tiny": pipeline}, {"tiny": 2}))
    side = 2 * pipeline.stage.size
    large, holding = held(service, height=side, width=side)
    assert service.submit(request(1, num_inference_steps=3)).result(60).pixels.shape[1] == pipeline.stage.size
    assert large.stage == "running"
    holding.let_go()
    assert large.result(60).pixels.shape[1] == side
    service.close()


def test_a_cancelled_request_ends_after_its_row(service: Service) -> None:
    job, holding = held(service)
    service.cancel(job)
    holding.let_go()
    with pytest.raises(Cancelled, match="cancelled by its caller"):
        job.result(60)
    assert (job.stage, job.called) == ("cancelled", 1)
    assert service.running == 0


def test_a_request_that_waits_is_cancelled_at_once(pipeline: Pipeline) -> None:
    service = Service(fixed({"tiny": pipeline}, {"tiny": 2}))
    first, holding = held(service)
    second = service.submit(request(1))
    service.cancel(second)
    with pytest.raises(Cancelled):
        second.result(0)
    assert (service.waiting, second.called) == (0, 0)
    holding.let_go()
    first.result(60)
    service.close()


def test_a_deadline(pipeline: Pipeline) -> None:
    """One that passes while the request waits makes room; one that passes while it runs ends it after its row."""
    service = Service(fixed({"tiny": pipeline}, {"tiny": 2}), waiting=1)
    first, holding = held(service)
    late = service.submit(request(1), seconds=0.0)
    while time.monotonic() <= (late.deadline or 0.0):
        pass
    last = service.submit(request(2))
    with pytest.raises(Cancelled, match="its deadline has passed"):
        late.result(0)
    first.deadline = time.monotonic()
    holding.let_go()
    with pytest.raises(Cancelled, match="its deadline has passed"):
        first.result(60)
    assert last.result(60).seeds == [2]
    service.close()


def test_what_a_model_refuses_is_refused_at_once(service: Service) -> None:
    with pytest.raises(InvalidRequest, match=r"no model 'tinny', did you mean 'tiny'\?; expected tiny"):
        service.submit(request(), "tinny")
    with pytest.raises(InvalidRequest, match="scheduler"):
        service.submit(request(scheduler="unheard_of"))
    assert (service.waiting, service.running) == (0, 0)


def test_an_error_ends_one_request_alone(service: Service) -> None:
    """Latents that are not finite fail their own request; the one beside it is right."""
    pipeline = service.models["tiny"]
    side = pipeline.stage.size // pipeline.stage.space.factor
    latents = np.full((1, pipeline.stage.space.channels, side, side), np.nan, np.float32)
    broken = service.submit(request(latents=latents, num_inference_steps=5))
    whole = service.submit(request(7, num_inference_steps=5))
    with pytest.raises(NotFinite):
        broken.result(60)
    right = pipeline.generate(request(7, num_inference_steps=5)).pixels
    np.testing.assert_array_equal(whole.result(60).pixels, right)
    assert broken.stage == "failed"


def test_progress_is_told_row_by_row(service: Service) -> None:
    """A watcher sees each row with its preview, and the end."""
    seen = list[tuple[str, int, tuple[int, ...] | None]]()

    def watcher(job: Job, state: State | None) -> None:
        seen.append((job.stage, job.called, None if state is None else state.x0.shape))

    job = service.submit(request(num_inference_steps=3, scheduler="ddim"), watcher=watcher)
    job.result(60)
    job.watch(watcher)  # after the end it is called at once
    shape = job.result(0).latents.shape
    rows = [("running", row, shape) for row in (1, 2, 3)]
    assert seen[0] == ("running", 0, None)
    assert seen[1:4] == rows
    assert seen[-1] == ("done", 3, None)


def test_a_watcher_that_takes_its_time_holds_up_nobody(pipeline: Pipeline) -> None:
    """Such as one that writes the images: others are accepted and drawn meanwhile, and closing waits for it."""
    service, told, may_go_on, waited = Service(fixed({"tiny": pipeline}, {"tiny": 8})), Event(), Event(), list[bool]()

    def slow(job: Job, state: State | None) -> None:
        if job.ended:
            told.set()
            waited.append(may_go_on.wait(30))

    first = service.submit(request(num_inference_steps=1), watcher=slow)
    assert told.wait(30)
    assert service.submit(request(1, num_inference_steps=2)).result(60).seeds == [1]
    closing = Thread(target=service.close, args=(60,))
    closing.start()
    while not service.closed:
        Event().wait(0.001)
    assert closing.is_alive()
    may_go_on.set()
    closing.join()
    assert (waited, first.stage) == ([True], "done")


def test_a_service_that_is_closed(pipeline: Pipeline) -> None:
    """What runs may end within the grace; what is left then is given up, and nothing new is accepted."""
    service = Service(fixed({"tiny": pipeline}, {"tiny": 8}))
    ends = service.submit(request(num_inference_steps=2))
    service.close(grace=60)
    assert ends.stage == "done"
    with pytest.raises(LdmrtError, match="it is being stopped"):
        service.submit(request())
    service = Service(fixed({"tiny": pipeline}, {"tiny": 2}))
    first, holding = held(service)
    second = service.submit(request(1))
    holding.let_go()
    service.close()
    for job in (first, second):
        with pytest.raises(Cancelled, match="the service was stopped"):
            job.result(0)


def test_models_that_do_not_fit_together_are_drawn_by_turns(bundle: Path) -> None:
    """A model waits for the one that is in memory, is loaded in its place, and draws the same images."""
    with open_pipeline(bundle) as first, open_pipeline(bundle) as second:
        right = first.generate(request(3)).pixels
        models = Models(budget=1.5 * first.weights)
        for name, pipeline in (("first", first), ("second", second)):
            assert pipeline.weights > 0
            models.put(name, pipeline, 8)
        service = Service(models)
        for _ in range(2):
            running, holding = held(service)
            other = service.submit(request(3), "second")
            assert (other.stage, service.position(other)) == ("waiting", 0)
            assert [models.is_loaded(name) for name in models] == [True, False]
            holding.let_go()
            assert running.result(60).seeds == [0]
            np.testing.assert_array_equal(other.result(60).pixels, right)
            assert [models.is_loaded(name) for name in models] == [False, True]
        service.close()


def test_a_model_is_replaced_while_it_draws(bundle: Path) -> None:
    """The request that runs ends with the old pipeline, which is closed then; the next one has the new one."""
    old, new = open_pipeline(bundle), open_pipeline(bundle)
    service = Service(fixed({"tiny": old}, {"tiny": 8}))
    running, holding = held(service)
    service.replace_model("tiny", new)
    later = service.submit(request(1))
    assert later.result(60).seeds == [1]
    assert running.stage == "running"
    holding.let_go()
    assert running.result(60).seeds == [0]
    with pytest.raises(LdmrtError, match="it is closed"):
        old.generate(request())
    assert new.generate(request()).seeds == [0]
    service.close()
    service.models.close()


def test_a_request_that_fails_with_a_replaced_model_is_drawn_by_the_new_one(bundle: Path, tmp_path: Path) -> None:
    """Such as one whose decoder had not been opened when its file was replaced."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    old, new = open_pipeline(folder), open_pipeline(bundle)
    right = new.generate(request(num_inference_steps=50)).pixels
    service = Service(fixed({"tiny": old}, {"tiny": 8}))
    running, holding = held(service)
    old.engines.close()  # what it has not opened cannot be opened any more
    service.replace_model("tiny", new)
    holding.let_go()
    np.testing.assert_array_equal(running.result(60).pixels, right)
    assert (running.stage, running.called) == ("done", 50)
    service.close()
    service.models.close()


def test_a_bundle_that_cannot_be_opened_again_changes_nothing(
    service: Service, pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    def damaged(path: str) -> Pipeline:
        raise BundleError("bundle", f"{path} is damaged")

    with caplog.at_level(logging.ERROR, "ldmrt.serve"):
        reload_models(service, {"tiny": "a/b"}, damaged)
    assert "model tiny was not reloaded: bundle: a/b is damaged" in caplog.text
    assert service.models["tiny"] is pipeline
    assert service.submit(request(num_inference_steps=2)).result(60).seeds == [0]
