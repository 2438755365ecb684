"""Hold what the routes of a server share."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from starlette.requests import Request as HTTPRequest

from ldmrt.runtime.images.png import encode_png
from ldmrt.runtime.pipeline.prompts.styles import Style
from ldmrt.runtime.samplers.plan import Latents
from ldmrt.serve.jobs.budget import Budget
from ldmrt.serve.jobs.defaults import SECONDS
from ldmrt.serve.jobs.job import Job
from ldmrt.serve.jobs.previews import Previews
from ldmrt.serve.jobs.serving import Serving
from ldmrt.serve.jobs.store import Jobs

from .metrics import Metrics

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds what a caller may send.

    Attributes:
        body: Bytes of a request's body.
        body_seconds: How long a body may take to come.
        held: Bytes of all bodies, and again of all images of requests that wait or run.
        prompt: Characters of a prompt.
        parts: Of a prompt, between ANDs, each of which is a row of every call.
        images: Images of a request.
        pixels: Of all images of a request.
        steps: Of the sampler.
        seconds: After so many seconds a request is given up; a request may ask for fewer.
        per_key: Requests of one API key, or of all callers without keys, that wait or run; 0 for any number.
        kept: Jobs that have ended and whose images can still be fetched.
        kept_seconds: How long they are kept.
        kept_bytes: How large all of them are together; the oldest go first.
        streams: Streams of events that are open.
        streams_per_request: Those of one request.
        streams_per_key: Those of one API key, where keys are asked for.
    """

    body: int = 32 * MEGABYTE
    body_seconds: float = 60.0
    held: int = 1024 * MEGABYTE
    prompt: int = 10_000
    parts: int = 16
    images: int = 16
    pixels: int = 16 * 1024 * 1024
    steps: int = 500
    seconds: float = SECONDS
    per_key: int = 0
    kept: int = 256
    kept_seconds: float = 600.0
    kept_bytes: int = 512 * MEGABYTE
    streams: int = 256
    streams_per_request: int = 8
    streams_per_key: int = 64


@dataclass(frozen=True)
class Server:
    """Holds what the routes of a server share.

    Attributes:
        service: Draws the images.
        limits: Bounds what callers may send.
        keys: The owner of each API key, by the key's SHA-256 in hexadecimal digits; empty where none is asked for.
        metrics: The service's observer.
        styles: The texts that AUTOMATIC1111's API puts around prompts, by name.
        jobs: The jobs that can be asked for by name.
        bodies: Counts the bytes of bodies that are held.
        images: Counts the bytes of the images of requests that wait or run.
        places: Counts the requests of each key that wait or run.
        streams: Counts the streams of events that are open.
        streams_per_request: Counts those of each request.
        streams_per_key: Counts those of each key.
        previews: Decodes what rows predict.
        started: When the server began, in seconds since 1970.
    """

    service: Serving
    metrics: Metrics
    limits: Limits = field(default_factory=Limits)
    keys: dict[str, str] = field(default_factory=dict, repr=False)
    styles: Mapping[str, Style] = field(default_factory=dict, repr=False)
    jobs: Jobs = field(init=False)
    bodies: Budget = field(init=False)
    images: Budget = field(init=False)
    places: Budget = field(init=False)
    streams: Budget = field(init=False)
    streams_per_request: Budget = field(init=False)
    streams_per_key: Budget = field(init=False)
    previews: Previews = field(init=False)
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        """Make the store of jobs, and what counts, by the limits."""
        self.metrics.watch(self.service)
        limits = self.limits
        object.__setattr__(self, "jobs", Jobs(limits.kept, limits.kept_seconds, limits.kept_bytes))
        object.__setattr__(self, "bodies", Budget(limits.held))
        object.__setattr__(self, "images", Budget(limits.held))
        object.__setattr__(self, "places", Budget(limits.per_key))
        object.__setattr__(self, "streams", Budget(limits.streams))
        object.__setattr__(self, "streams_per_request", Budget(limits.streams_per_request))
        object.__setattr__(self, "streams_per_key", Budget(limits.streams_per_key if self.keys else 0))
        object.__setattr__(self, "previews", Previews(self._preview))

    def _preview(self, job: Job, latents: Latents, stage: str) -> list[bytes]:
        """Decode latents of a job to PNG files."""
        return [encode_png(image) for image in self.service.decode(job, latents, stage)]


def server_of(http: HTTPRequest) -> Server:
    """Return the server that a request was sent to."""
    return cast(Server, http.app.state.server)
