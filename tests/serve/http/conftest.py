"""A server of the tiny bundle that answers on the loopback, for the clients of its APIs."""

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.serve.http.metrics import Metrics
from ldmrt.serve.http.running import Stoppable, configured, listening
from ldmrt.serve.http.state import Limits, Server
from ldmrt.serve.jobs.service import Service


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


@pytest.fixture
def client(running: Running) -> Iterator[httpx.Client]:
    with running.client() as opened:
        yield opened
