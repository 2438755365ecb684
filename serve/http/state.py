"""Hold what the routes of a server share."""

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock
from typing import cast

from starlette.requests import Request as HTTPRequest

from ldmrt.serve.jobs.job import Job
from ldmrt.serve.jobs.service import Service

from .metrics import Metrics

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds what a caller may send.

    Attributes:
        body: Bytes of a request's body.
        prompt: Characters of a prompt.
        images: Images of a request.
        pixels: Of all images of a request.
        steps: Of the sampler.
        seconds: After so many seconds a request is given up; a request may ask for fewer.
        per_key: Requests of one API key, or of all callers without keys, that wait or run; 0 for any number.
        kept: Jobs that have ended and whose images can still be fetched.
        kept_seconds: How long they are kept.
    """

    body: int = 32 * MEGABYTE
    prompt: int = 10_000
    images: int = 16
    pixels: int = 16 * 1024 * 1024
    steps: int = 500
    seconds: float = 600.0
    per_key: int = 0
    kept: int = 256
    kept_seconds: float = 600.0


class Jobs:
    """Finds jobs by their names: all that wait or run, and the last that have ended. Threads may share it."""

    def __init__(self, most: int, seconds: float) -> None:
        """Keep at most so many jobs that have ended, each for so many seconds."""
        self._most, self._seconds, self._changing = most, seconds, Lock()
        self._jobs: OrderedDict[str, tuple[Job, float]] = OrderedDict()

    def add(self, job: Job) -> None:
        """Keep a job."""
        with self._changing:
            self._forget()
            self._jobs[job.id] = job, time.monotonic()

    def get(self, name: str) -> Job | None:
        """Return a job by its name; None where it is unknown or no longer kept."""
        with self._changing:
            self._forget()
            found = self._jobs.get(name)
            return None if found is None else found[0]

    def of(self, owner: str) -> list[Job]:
        """Return the jobs of an owner that wait or run."""
        with self._changing:
            return [job for job, _ in self._jobs.values() if job.owner == owner and not job.ended]

    def _forget(self) -> None:
        """Forget the oldest jobs that have ended."""
        now = time.monotonic()
        ended = [(name, since) for name, (job, since) in self._jobs.items() if job.ended]
        for place, (name, since) in enumerate(ended):
            if len(ended) - place > self._most or now - since > self._seconds:
                del self._jobs[name]


@dataclass(frozen=True)
class Server:
    """Holds what the routes of a server share.

    Attributes:
        service: Draws the images.
        limits: Bounds what callers may send.
        keys: The owner of each API key, by the key's SHA-256 in hexadecimal digits; empty where none is asked for.
        metrics: The service's observer.
        jobs: The jobs that can be asked for by name.
        started: When the server began, in seconds since 1970.
    """

    service: Service
    metrics: Metrics
    limits: Limits = field(default_factory=Limits)
    keys: dict[str, str] = field(default_factory=dict, repr=False)
    jobs: Jobs = field(init=False)
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        """Make the store of jobs by the limits."""
        self.metrics.watch(self.service)
        object.__setattr__(self, "jobs", Jobs(self.limits.kept, self.limits.kept_seconds))


def server_of(http: HTTPRequest) -> Server:
    """Return the server that a request was sent to."""
    return cast(Server, http.app.state.server)
