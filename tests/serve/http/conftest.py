"""A server of the tiny bundle that answers on the loopback, for the clients of its APIs."""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from ldmrt.runtime import Request
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.prompts.styles import Style
from ldmrt.runtime.samplers.loop import State
from ldmrt.serve.http.metrics import Metrics
from ldmrt.serve.http.running import Stoppable, configured, listening
from ldmrt.serve.http.state import Limits, Server
from ldmrt.serve.jobs.job import Job
from ldmrt.serve.jobs.service import Service
from ldmrt.serve.models.models import fixed

from ..conftest import until


class Held:
    """A request that runs in a service, and ends when it is let go."""

    def __init__(self, service: Service, owner: str = "") -> None:
        begun, self._go_on = Event(), Event()

        def hold(job: Job, state: State | None) -> None:
            if state is not None:
                begun.set()
                assert self._go_on.wait(60)

        self.job = service.submit(Request("a pear", num_inference_steps=2), owner=owner, watcher=hold)
        assert begun.wait(60)

    def let_go(self) -> None:
        self._go_on.set()


class Running:
    """A server that runs in a thread until it is stopped."""

    def __init__(
        self,
        pipeline: Pipeline,
        limits: Limits | None = None,
        keys: dict[str, str] | None = None,
        grace: float = 5,
        *,
        rows: int = 8,
        waiting: int = 8,
        styles: Mapping[str, Style] | None = None,
    ) -> None:
        metrics = Metrics()
        self.service = Service(fixed({"tiny": pipeline}, {"tiny": rows}), waiting=waiting, observer=metrics)
        self.server = Server(self.service, metrics, limits or Limits(), keys or {}, styles or {})
        self._listening = listening("127.0.0.1", 0)
        socket = self._listening.__enter__()
        self.url = f"http://127.0.0.1:{socket.getsockname()[1]}"
        self._uvicorn = Stoppable(configured(self.server), self.server, grace)
        self._thread = threading.Thread(target=self._uvicorn.run, args=([socket],))
        self._thread.start()

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)  # type: ignore[arg-type]

    def asked(self) -> "Future[httpx.Response]":
        """Ask for an image from another thread."""
        answer = Future[httpx.Response]()

        def ask() -> None:
            with self.client() as client:
                answer.set_result(client.post("/v1/images/generations", json={"prompt": "a"}))

        threading.Thread(target=ask).start()
        return answer

    def service_job(self, name: str) -> Job:
        job = self.server.jobs.get(name)
        assert job is not None
        return job

    def begin_to_stop(self) -> None:
        """Return when it no longer takes requests."""
        self._uvicorn.should_exit = True
        until(lambda: self.service.closed)

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
def own_server(pipeline: Pipeline) -> Iterator[Callable[..., Running]]:
    """Starts servers with limits of a test's own, and stops them after it."""
    servers = list[Running]()

    def start(**options: Any) -> Running:
        servers.append(Running(pipeline, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def client(running: Running) -> Iterator[httpx.Client]:
    with running.client() as opened:
        yield opened
