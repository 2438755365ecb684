"""Draw a request on one of several replicas, and on another one where that is lost."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import RayServeException

from ldmrt.runtime.pipeline.call import Result
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.plan import Latents
from ldmrt.serve.batching.dispatcher import Stopping
from ldmrt.serve.jobs.job import Job
from ldmrt.serve.jobs.serving import Unavailable

from .messages import Ended, Message, owned

log = logging.getLogger("ldmrt.serve")
ATTEMPTS = 4  # replicas that may be lost under a request before it fails: it may be what ends them
LOST = (RayActorError, NodeDiedError, ObjectLostError, WorkerCrashedError, RayServeException)
DECODING = 60.0  # seconds that a preview may take


class Stream(Protocol):
    """The messages of a request that a replica draws."""

    async def __anext__(self) -> Message:
        """Return the next message; what is in `LOST` is raised where the replica is lost."""

    def cancel(self) -> None:
        """Give the request up."""


class Replicas(Protocol):
    """Draws by one replica of several."""

    def draw(self, model: str, request: Request, seconds: float | None) -> Stream:
        """Begin to draw a request."""

    def decode(self, model: str, latents: Latents, stage: str) -> NDArray[np.uint8]:
        """Decode latents (N, C, h, w) to images (N, H, W, 3)."""


class DeployedReplicas:
    """The replicas of a deployment."""

    def __init__(self, handle: Any, *, take_turns: bool = False) -> None:
        """Take the deployment's handle.

        Args:
            handle: The handle.
            take_turns: Whether replicas keep fewer models than there are. A request then goes to one that has its
                model, if one has; else to the least busy one.
        """
        self._handle, self._take_turns = handle, take_turns

    def draw(self, model: str, request: Request, seconds: float | None) -> Stream:
        """Begin to draw a request."""
        stream: Stream = self._options(model).options(stream=True).draw.remote(model, request, seconds)
        return stream

    def decode(self, model: str, latents: Latents, stage: str) -> NDArray[np.uint8]:
        """Decode latents (N, C, h, w) to images (N, H, W, 3)."""
        asked = self._options(model).decode.remote(model, latents, stage)
        images: NDArray[np.uint8] = asked.result(timeout_s=DECODING)
        return images

    def _options(self, model: str) -> Any:
        """Return the handle for a model."""
        return self._handle.options(multiplexed_model_id=model) if self._take_turns else self._handle


async def draw(job: Job, replicas: Replicas, tell: Callable[[Message], Awaitable[object]]) -> Result | BaseException:
    """Draw a job on a replica; one whose replica is lost begins anew on another, which draws the same bytes.

    Args:
        job: The job, which was not begun.
        replicas: Draw it.
        tell: Called with each message but the last, and awaited.

    Returns:
        The images, or the error that ended the job where it was drawn.

    Raises:
        Cancelled: The job was given up, or its deadline has passed.
        Unavailable: `ATTEMPTS` replicas were lost under it.
    """
    for _ in range(ATTEMPTS):
        job.check()
        stream, ended = replicas.draw(job.model, job.request, left(job)), False
        try:
            while not ended:
                message = await asyncio.wait_for(stream.__anext__(), left(job))
                ended = isinstance(message, Ended)
                if not isinstance(message, Ended) or message.batches:
                    await tell(message)
            assert isinstance(message, Ended)
            outcome = message.outcome
            if not isinstance(outcome, Stopping):  # else the replica was being stopped when it was asked
                assert outcome is not None
                return owned(outcome) if isinstance(outcome, Result) else outcome
        except (asyncio.TimeoutError, StopAsyncIteration):
            job.check()  # its deadline, unless the stream broke off
        except LOST as error:
            log.warning("request %s: its replica was lost: %s", job.id, type(error).__name__)
        finally:
            if not ended:
                stream.cancel()
        job.called = 0
    problem = f"{ATTEMPTS} replicas that drew it were lost"
    raise Unavailable("request", problem, hint="the logs of the replicas: `ray status`, `serve status`")


def left(job: Job) -> float | None:
    """Return the seconds that a job has; None where it has no deadline."""
    return None if job.deadline is None else max(0.0, job.deadline - time.monotonic())
