"""Networks that the tests of serving call in the place of real ones, and services of the tiny bundle."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import Request
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.samplers.loop import State
from ldmrt.runtime.tensors import Array, Arrays, TensorSpec
from ldmrt.serve.jobs.job import Job
from ldmrt.serve.jobs.service import Service
from ldmrt.serve.models.models import fixed


class Doubling:
    """A network (x, t) -> 2 x + t; it notes the rows of each call, and waits in each until it may go on."""

    inputs = (
        TensorSpec("sample", "float32", ("batch", 1, "height", "width")),
        TensorSpec("timestep", "float32", ("timesteps",)),
    )
    outputs = (TensorSpec("out_sample", "float32", ("batch", 1, "height", "width")),)

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.begun, self.may_go_on = Event(), Event()
        self.may_go_on.set()

    def __call__(self, **arrays: Array) -> Arrays:
        self.begun.set()
        assert self.may_go_on.wait(30)
        self.rows.append(len(arrays["sample"]))
        if (arrays["timestep"] < 0).any():
            raise ValueError("a negative time")
        return {"out_sample": 2 * arrays["sample"] + arrays["timestep"][:, None, None, None]}

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def network() -> Doubling:
    return Doubling()


def until(holds: Callable[[], object], seconds: float = 240) -> None:
    """Wait until something holds, but not for ever: a first import on a busy machine takes more than a minute."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def call(rows: int, t: float, side: int = 2) -> Arrays:
    """Return the arrays of a call with these many rows."""
    sample = np.arange(rows * side * side, dtype=np.float32).reshape(rows, 1, side, side)
    return {"sample": sample, "timestep": np.full(rows, t, np.float32)}


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
