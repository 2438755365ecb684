"""Draw requests in a replica of a Ray Serve deployment, by a service of its own for each model that is loaded."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from threading import TIMEOUT_MAX, Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.loop import State
from ldmrt.runtime.samplers.plan import Latents
from ldmrt.serve.batching.dispatcher import Batch
from ldmrt.serve.jobs.job import Job
from ldmrt.serve.jobs.observers import Observer
from ldmrt.serve.jobs.service import RUNNING, Service
from ldmrt.serve.models.models import fixed
from ldmrt.serve.models.rows import rows_of

from .messages import Ended, Message, Row

log = logging.getLogger("ldmrt.serve")
MOST_ONGOING = 2 * RUNNING  # requests of a replica: those that run, and as many that wait for room in a batch


class Measured(Observer):
    """Keeps the calls of U-Nets that have run until they are sent."""

    def __init__(self) -> None:
        """Begin without calls."""
        self._batches, self._changing = list[Batch](), Lock()

    def batch(self, batch: Batch) -> None:
        """Note a call."""
        with self._changing:
            self._batches.append(batch)

    def taken(self) -> tuple[Batch, ...]:
        """Return the calls since the last time, each of them once."""
        with self._changing:
            batches, self._batches = self._batches, []
        return tuple(batches)


class Loaded:
    """A model in a replica: a pipeline and the service that draws with it. Ray Serve calls `__del__` to unload it."""

    def __init__(
        self, name: str, bundle: str, rows: int | None, opening: Mapping[str, Any], measured: Observer
    ) -> None:
        """Open a bundle; `rows` are those of a call of its U-Net at its own size, measured where it is None."""
        self._closing, self._decoding = contextlib.ExitStack(), Lock()
        with contextlib.ExitStack() as closing:
            self.pipeline = closing.enter_context(open_pipeline(bundle, **opening))
            most = rows or rows_of(self.pipeline)
            self.service = Service(fixed({name: self.pipeline}, {name: most}), waiting=MOST_ONGOING, observer=measured)
            closing.callback(self.service.close, TIMEOUT_MAX)
            self._closing = closing.pop_all()

    def close(self) -> None:
        """Draw what was accepted, and free the networks; a second call does nothing."""
        with self._decoding:
            self._closing.close()

    __del__ = close

    def decode(self, latents: Latents, stage: str) -> NDArray[np.uint8]:
        """Preview latents (N, C, h, w) of a stage as images (N, H, W, 3), one call at a time, while it is open."""
        with self._decoding:
            return np.ascontiguousarray(self.pipeline.public_preview(latents, stage))


class Replica:
    """Draws requests, and streams what there is to tell of each.

    One that is asked of `draw` and no longer read is given up after its row.
    """

    def __init__(self, bundles: Mapping[str, str], rows: int | None, opening: Mapping[str, Any]) -> None:
        """Take the bundles by name, the rows of a call (None measures them), and the arguments of `open_pipeline`."""
        self._bundles, self._rows, self._opening = dict(bundles), rows, dict(opening)
        self._measured = Measured()

    async def loaded(self, name: str) -> Loaded:
        """Load a model; a subclass keeps those that are, by `serve.multiplexed`."""
        how = name, self._bundles[name], self._rows, self._opening, self._measured
        return await asyncio.get_running_loop().run_in_executor(None, Loaded, *how)

    async def draw(self, model: str, request: Request, seconds: float | None = None) -> AsyncIterator[Message]:
        """Draw a request by a model within so many seconds, and yield messages of it; the last one is an `Ended`."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Message]()

        def watcher(job: Job, state: State | None) -> None:
            if state is not None:
                message: Message = Row.of(job, state)
            else:
                message = Ended.by(job.error or job.result(0)) if job.ended else Message()
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(queue.put_nowait, message)

        try:
            loaded = await self.loaded(model)
            job = loaded.service.submit(request, seconds=seconds, watcher=watcher)
        except Exception as error:
            if not isinstance(error, LdmrtError):
                log.exception("a request failed")
            yield Ended.by(error)
            return
        try:
            ended = False
            while not ended:
                message = await queue.get()
                ended = isinstance(message, Ended)
                object.__setattr__(message, "batches", self._measured.taken())
                yield message
        finally:
            if not job.ended:
                loaded.service.cancel(job)

    async def decode(self, model: str, latents: Latents, stage: str) -> NDArray[np.uint8]:
        """Decode the latents of a stage, (N, C, h, w), to images (N, H, W, 3)."""
        loaded, loop = await self.loaded(model), asyncio.get_running_loop()
        return await loop.run_in_executor(None, loaded.decode, latents, stage)
