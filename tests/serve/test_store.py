"""Jobs that have ended are kept up to a number, an age and a size, and the log has a line of each, not its prompt."""

import json
import logging
from typing import Any

import numpy as np
import PIL.Image
import pytest

from ldmrt.runtime import LdmrtError, Request
from ldmrt.runtime.pipeline.call import Result
from ldmrt.serve.batching.lanes import Lane
from ldmrt.serve.jobs.budget import Budget
from ldmrt.serve.jobs.job import Cancelled, Job, given_bytes
from ldmrt.serve.jobs.observers import JobLog, JsonLines, Observer, Observers
from ldmrt.serve.jobs.store import Jobs

SIDE = 10
BYTES = SIDE * SIDE * 3 + 4 * 4


def job(owner: str = "", **settings: Any) -> Job:
    return Job(Lane("tiny/base", (SIDE, SIDE), 8), Request("secret words", **settings), 4, 2, owner=owner, model="tiny")


def drawn() -> Result:
    return Result(np.zeros((1, SIDE, SIDE, 3), np.uint8), np.zeros((1, 1, 2, 2), np.float32), [0], {"decode": 0.25})


def known(store: Jobs, jobs: list[Job]) -> list[int]:
    return [place for place, job_ in enumerate(jobs) if store.get(job_.id) is job_]


@pytest.mark.parametrize(
    ("most", "seconds", "size", "left"),
    [(3, 60, 10**9, [2, 3, 4, 5]), (9, 60, 2 * BYTES, [3, 4, 5]), (9, 0, 10**9, [5]), (0, 60, 10**9, [5])],
)
def test_jobs_that_have_ended_are_forgotten(most: int, seconds: float, size: int, left: list[int]) -> None:
    """The oldest first; the last one here has not ended."""
    store, jobs = Jobs(most, seconds, size), [job() for _ in range(6)]
    for one in jobs:
        store.add(one)
    for one in jobs[:-1]:
        one.end(drawn())
    assert known(store, jobs) == left
    assert (len(store), store.size) == (len(left), (len(left) - 1) * BYTES)


def test_a_job_that_has_ended_before_it_is_kept() -> None:
    store, ended = Jobs(9, 60, 10**9), job("a")
    ended.end(Cancelled("request", "given up"))
    store.add(ended)
    waits = job("a")
    store.add(waits)
    assert (store.of("a"), store.of("b"), store.get(ended.id)) == ([waits], [], ended)


def test_bytes_of_given_images() -> None:
    """Pillow's images, arrays and controls count as they are in memory; a path does not."""
    image = PIL.Image.new("RGBA", (5, 7))
    request = Request("a", image=image, mask_image=np.zeros((5, 7), np.uint8), controls={"a": (image, 0.5), "b": image})
    assert given_bytes(request) == 3 * 5 * 7 * 4 + 5 * 7
    assert given_bytes(Request("a")) == 0


def test_a_budget() -> None:
    budget, unbounded = Budget(3), Budget(0)
    assert [budget.take("a", 2), budget.take("a", 2), budget.take("b", 2), budget.take("a", 1)] == [
        True,
        False,
        True,
        True,
    ]
    assert budget.held == 5
    budget.give_back("a", 3)
    assert (budget.held, budget.take("a", 3), unbounded.take("a", 10**12)) == (2, True, True)


def test_an_error_of_a_watcher_or_an_observer_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    told = list[object]()

    class Broken(Observer):
        def job(self, job: Job) -> None:
            raise ValueError("observer")

    class Whole(Observer):
        def job(self, job: Job) -> None:
            told.append(job)

    def broken(job: Job, state: object) -> None:
        raise ValueError("watcher")

    watched = job()
    watched.watch(broken)
    watched.watch(lambda job, state: told.append(state))
    watched.end(drawn())
    Observers(Broken(), Whole()).job(watched)
    assert told == [None, watched]
    assert watched.stage == "done"
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["watcher", "observer"]


@pytest.mark.parametrize(
    ("outcome", "stage", "level"),
    [
        (drawn(), "done", "INFO"),
        (Cancelled("request", "given up"), "cancelled", "INFO"),
        (LdmrtError("a", "secret words"), "failed", "INFO"),
        (ZeroDivisionError("of ldmrt"), "failed", "ERROR"),
    ],
)
def test_the_log(outcome: Any, stage: str, level: str, caplog: pytest.LogCaptureFixture) -> None:
    """A line of JSON for each request that has ended; the traceback of a bug is in it, and no prompt."""
    ended = job("a", num_inference_steps=4)
    ended.called = 3
    ended.end(outcome)
    with caplog.at_level(logging.INFO, "ldmrt.serve"):
        JobLog().job(ended)
    text = JsonLines().format(caplog.records[0])
    assert "\n" not in text
    line = json.loads(text)
    fields = ("request", "model", "owner", "stage", "calls", "rows", "level")
    assert [line[name] for name in fields] == [ended.id, "tiny", "a", stage, 3, 6, level]
    assert ("traceback" in line, "ZeroDivisionError" in text) == (level == "ERROR",) * 2
    assert "secret words" not in text + caplog.records[0].getMessage()
    assert line["seconds"].get("decode") == (0.25 if stage == "done" else None)
