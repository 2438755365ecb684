"""What the tests of serving share: a network in the place of real ones, and a server that answers on the loopback."""

import threading
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import httpx
import numpy as np
import pytest

from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.tensors import Array, Arrays, TensorSpec
from ldmrt.serve.http.metrics import Metrics
from ldmrt.serve.http.running import Stoppable, configured, listening
from ldmrt.serve.http.state import Limits, Server
from ldmrt.serve.jobs.service import Service


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


def call(rows: int, t: float, side: int = 2) -> Arrays:
    """Return the arrays of a call with these many rows."""
    sample = np.arange(rows * side * side, dtype=np.float32).reshape(rows, 1, side, side)
    return {"sample": sample, "timestep": np.full(rows, t, np.float32)}


class Running:
    """A server that runs in a thread until it is stopped."""

    def __init__(self, pipeline: Pipeline, limits: Limits | None = None, keys: dict[str, str] | None = None) -> None:
        metrics = Metrics()
        self.service = Service({"tiny": pipeline}, {"tiny": 8}, waiting=8, observer=metrics)
        self.server = Server(self.service, metrics, limits or Limits(), keys or {})
        self._listening = listening("127.0.0.1", 0)
        socket = self._listening.__enter__()
        self.url = f"http://127.0.0.1:{socket.getsockname()[1]}"
        self._uvicorn = Stoppable(configured(self.server, grace=5), self.server)
        self._thread = threading.Thread(target=self._uvicorn.run, args=([socket],))
        self._thread.start()

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)  # type: ignore[arg-type]

    def stop(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join()
        self.service.close()
        self._listening.__exit__(None, None, None)


@pytest.fixture(scope="session")
def pipeline(bundle: Path) -> Iterator[Pipeline]:
    with open_pipeline(bundle) as opened:
        yield opened


@pytest.fixture(scope="session")
def running(pipeline: Pipeline) -> Iterator[Running]:
    """A server with the usual limits and without keys, which tests share."""
    server = Running(pipeline)
    yield server
    server.stop()
