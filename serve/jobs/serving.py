"""Say what the routes of a server ask of a service, whether it draws here or on other machines."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.plan import Latents

from .job import Job, Watcher


class Unavailable(LdmrtError):
    """Nothing is there that could draw a request now."""


class Serving(Protocol):
    """Accepts requests as jobs, draws them, and tells how busy it is; `Service` describes each method."""

    @property
    def models(self) -> Mapping[str, Pipeline]:
        """The pipelines by name, which answer questions of sizes, plans and certificates; the first is the default."""

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests."""

    @property
    def waiting(self) -> int:
        """How many requests wait."""

    @property
    def running(self) -> int:
        """How many requests run."""

    def is_loaded(self, name: str) -> bool | None:
        """Tell whether a model is in memory; None where others than this process have it."""

    def submit(
        self,
        request: Request,
        model: str | None = None,
        *,
        seconds: float | None = None,
        owner: str = "",
        watcher: Watcher | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> Job:
        """Accept a request."""

    def check_room(self) -> None:
        """Raise what `submit` would raise now for a request that waits."""

    def cancel(self, job: Job) -> None:
        """Give a job up."""

    def position(self, job: Job) -> int | None:
        """Return how many requests are before one that waits; None where it does not wait."""

    def decode(self, job: Job, latents: Latents, stage: str) -> NDArray[np.uint8]:
        """Decode latents (N, C, h, w) of a job's stage to images (N, H, W, 3), as a preview."""

    def seconds_left(self) -> int:
        """Return in how many seconds all that waits and runs is likely to be done."""

    def stop(self) -> None:
        """Refuse new requests."""

    def give_up(self) -> None:
        """Give up all requests."""

    def close(self, grace: float = 0.0) -> None:
        """Refuse new requests, and give up those that have not ended after `grace` seconds."""
