"""A service draws the images that its pipelines draw alone, and refuses what it cannot serve."""

import time
from threading import Event, Thread

import numpy as np
import pytest

from ldmrt.runtime import InvalidRequest, LdmrtError, NotFinite
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.samplers.loop import State
from ldmrt.serve.batching.dispatcher import Batch
from ldmrt.serve.batching.room import rows_per_call
from ldmrt.serve.jobs.job import Cancelled, Job
from ldmrt.serve.jobs.rate import Rate
from ldmrt.serve.jobs.service import OVERTAKEN, Busy, Service
from ldmrt.serve.models.models import fixed

from .conftest import held, request

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
