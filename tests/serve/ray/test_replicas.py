"""A request whose replica is lost is drawn by another one, and is reported where none is left."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray")

from ray.exceptions import RayActorError

from ldmrt.runtime import InvalidRequest, LdmrtError, Request
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.samplers.loop import State
from ldmrt.serve.batching.dispatcher import Batch, Stopping
from ldmrt.serve.batching.lanes import Lane
from ldmrt.serve.http.errors import status_of
from ldmrt.serve.jobs.job import Cancelled, DeadlinePassed, Job, Stopped
from ldmrt.serve.jobs.observers import Observer
from ldmrt.serve.jobs.service import Busy
from ldmrt.serve.jobs.serving import Unavailable
from ldmrt.serve.ray.messages import Ended, Message, Row
from ldmrt.serve.ray.replicas import ATTEMPTS
from ldmrt.serve.ray.service import RayService

LANE = Lane("tiny/base", (16, 16), 8)
BATCH = Batch(LANE, 1, 2, 0.5)
Step = Message | BaseException | threading.Event


class Stream:
    """Messages as a replica sends them; an error is raised, and an event waited for, until it is given up."""

    def __init__(self, steps: list[Step]) -> None:
        self._steps, self.cancelled = iter(steps), threading.Event()

    async def __anext__(self) -> Message:
        step = next(self._steps)
        if isinstance(step, threading.Event):
            step.set()
            await asyncio.Event().wait()
        if isinstance(step, BaseException):
            raise step
        assert isinstance(step, Message)
        return step

    def cancel(self) -> None:
        self.cancelled.set()


class Scripted:
    """Replicas each of which sends what a test says."""

    def __init__(self, *scripts: list[Step]) -> None:
        self._scripts, self.streams, self.seconds = list(scripts), list[Stream](), list[float | None]()

    def draw(self, model: str, request: Request, seconds: float | None) -> Stream:
        self.seconds.append(seconds)
        self.streams.append(Stream(self._scripts[min(len(self.streams), len(self._scripts) - 1)]))
        return self.streams[-1]

    def decode(self, model: str, latents: Any, stage: str) -> Any:
        return np.full((1, 2, 2, 3), latents.sum(), np.uint8)


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Iterator[Pipeline]:
    with open_pipeline(bundle) as opened:
        yield opened


@pytest.fixture(scope="module")
def ended(pipeline: Pipeline) -> Ended:
    return Ended(outcome=pipeline.generate(Request("a pear", num_inference_steps=2)))


@pytest.fixture
def service(pipeline: Pipeline) -> Iterator[Callable[..., RayService]]:
    """Makes services of scripted replicas."""
    made = list[RayService]()

    def make(*scripts: list[Step], **options: Any) -> RayService:
        made.append(RayService({"tiny": pipeline}, Scripted(*scripts), **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def row(number: int) -> Row:
    return Row(row=number, rows=2, x0=np.ones((1, 1, 2, 2), np.float32))


def replicas_of(service: RayService) -> Scripted:
    replicas = service._replicas
    assert isinstance(replicas, Scripted)
    return replicas


class Told:
    """What a watcher is told: the stage and the rows that were called."""

    def __init__(self) -> None:
        self.stages = list[tuple[str, int]]()

    def __call__(self, job: Job, state: State | None) -> None:
        self.stages.append((job.stage, job.called))


def test_a_lost_replica_is_followed_by_another_one(service: Callable[..., RayService], ended: Ended) -> None:
    """The rows count from the beginning again, and the request begins once."""
    made, told = service([Message(), row(0), RayActorError()], [Message(), row(0), row(1), ended]), Told()
    job = made.submit(Request("a pear", num_inference_steps=2), watcher=told)
    np.testing.assert_array_equal(job.result(30).pixels, ended.outcome.pixels)  # type: ignore[union-attr]
    assert told.stages == [("running", 0), ("running", 1), ("running", 1), ("running", 2), ("done", 2)]
    assert [stream.cancelled.is_set() for stream in replicas_of(made).streams] == [True, False]


def test_the_rows_begin_when_the_replica_says(service: Callable[..., RayService], ended: Ended) -> None:
    """In the time of this machine: so spans have the encoders."""
    told = replace(row(0), encoding=0.25)
    job = service([Message(), told, replace(row(1), encoding=0.25), ended]).submit(Request("a", num_inference_steps=2))
    job.result(30)
    assert job.rows_began == job.accepted + job.seconds["waiting"] + 0.25


def test_a_replica_that_is_being_stopped_is_followed_too(service: Callable[..., RayService], ended: Ended) -> None:
    made = service([Ended(outcome=Stopping())], [ended])
    assert made.submit(Request("a")).result(30).seeds == [0]


def test_replicas_that_are_lost_again_and_again(service: Callable[..., RayService]) -> None:
    """The request may be what ends them, so it fails, by 503."""
    made = service([Message(), RayActorError()])
    job = made.submit(Request("a"))
    with pytest.raises(Unavailable, match=f"{ATTEMPTS} replicas that drew it were lost") as caught:
        job.result(30)
    assert (job.stage, status_of(caught.value)) == ("failed", 503)
    assert len(replicas_of(made).streams) == ATTEMPTS


@pytest.mark.parametrize("error", [LdmrtError("unet", "it does not open"), RuntimeError("a replica: KeyError: 1")])
def test_errors_of_a_replica_are_those_of_the_request(service: Callable[..., RayService], error: Exception) -> None:
    """They are not tried again."""
    made = service([Message(), Ended.by(error)])
    with pytest.raises(type(error), match=str(error)[-5:]):
        made.submit(Request("a")).result(30)
    assert len(replicas_of(made).streams) == 1


def test_a_cancelled_request_is_given_up_on_its_replica(service: Callable[..., RayService]) -> None:
    begun = threading.Event()
    made = service([Message(), row(0), begun])
    job = made.submit(Request("a"))
    assert begun.wait(30)
    made.cancel(job)
    with pytest.raises(Cancelled, match="its caller"):
        job.result(30)
    assert replicas_of(made).streams[0].cancelled.wait(30)
    assert job.stage == "cancelled"


def test_a_request_that_is_cancelled_at_once_ends(service: Callable[..., RayService]) -> None:
    """However far it has come by then."""
    made = service([Message(), threading.Event()])
    jobs = [made.submit(Request("a")) for _ in range(20)]
    for job in jobs:
        made.cancel(job)
    assert {type(job._result.exception(30)) for job in jobs} == {Cancelled}


def test_a_deadline_passes_where_no_replica_answers(service: Callable[..., RayService]) -> None:
    made = service([threading.Event()])
    with pytest.raises(DeadlinePassed):
        made.submit(Request("a"), seconds=0.05).result(30)
    seconds = replicas_of(made).seconds[0]
    assert seconds is not None
    assert 0 < seconds <= 0.05


def test_room_and_position(service: Callable[..., RayService]) -> None:
    made = service([threading.Event()], waiting=2)
    jobs = [made.submit(Request("a", num_inference_steps=3)) for _ in range(2)]
    assert [made.position(job) for job in jobs] == [0, 1]
    assert (made.waiting, made.running) == (2, 0)
    with pytest.raises(Busy):
        made.submit(Request("a"))
    made.close()
    assert {type(job.error) for job in jobs} == {Stopped}
    with pytest.raises(Stopping):
        made.submit(Request("a"))


def test_bad_requests_reach_no_replica(service: Callable[..., RayService]) -> None:
    made = service([threading.Event()])
    with pytest.raises(InvalidRequest, match="no model 'tony'"):
        made.submit(Request("a"), "tony")
    with pytest.raises(LdmrtError, match="scheduler"):
        made.submit(Request("a", scheduler="nonsense"))
    assert replicas_of(made).streams == []


def test_calls_on_replicas_are_measured_once(service: Callable[..., RayService], ended: Ended) -> None:
    class Noting(Observer):
        def __init__(self) -> None:
            self.batches, self.jobs = list[Batch](), Future[Job]()

        def batch(self, batch: Batch) -> None:
            self.batches.append(batch)

        def job(self, job: Job) -> None:
            self.jobs.set_result(job)

    noting, last = Noting(), Ended(outcome=ended.outcome, batches=(BATCH,))
    made = service([Message(), replace(row(0), batches=(BATCH, BATCH)), last], observer=noting)
    job = made.submit(Request("a"))
    assert noting.jobs.result(30) is job
    assert noting.batches == [BATCH] * 3


def test_previews_are_decoded_by_a_replica(service: Callable[..., RayService], ended: Ended) -> None:
    previews = Future[Any]()

    def watcher(job: Job, state: State | None) -> None:
        if state is not None:
            previews.set_result(made.decode(job, state.x0, state.stage))

    made = service([Message(), row(0), ended])
    made.submit(Request("a"), watcher=watcher)
    assert previews.result(30).max() == 4
