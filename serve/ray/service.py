"""Accept requests as `Service` does, and have them drawn by replicas on a Ray cluster."""

import asyncio
import contextvars
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Condition, Thread

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.pipeline.call import Result
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.plan import Latents
from ldmrt.serve.batching.dispatcher import Stopping
from ldmrt.serve.jobs.defaults import WAITING
from ldmrt.serve.jobs.job import Cancelled, Job, Stopped, Watcher
from ldmrt.serve.jobs.observers import Observer, Observers
from ldmrt.serve.jobs.rate import Rate
from ldmrt.serve.jobs.service import Busy
from ldmrt.serve.jobs.serving import Unavailable
from ldmrt.serve.models.naming import chosen

from .messages import Ended, Message, Row
from .replicas import Replicas, draw

TELLING = 32  # threads that tell watchers: they may encode images


class RayService:
    """Serves models by replicas: a request is drawn by one, and by another one where that is lost.

    Attributes:
        models: The pipelines by name, whose networks are not opened here.
        closed: Whether it takes no more requests.
    """

    def __init__(
        self,
        models: Mapping[str, Pipeline],
        replicas: Replicas,
        *,
        number: int = 1,
        waiting: int = WAITING,
        observer: Observer | None = None,
    ) -> None:
        """Start to serve.

        Args:
            models: The pipelines by name; the first is the default. The service does not close them.
            replicas: Draw the requests.
            number: How many replicas there are at least, for estimates of time.
            waiting: How many requests may wait.
            observer: Told of each batch and each job that has ended.
        """
        self.models, self._replicas, self._number, self._most_waiting = dict(models), replicas, number, waiting
        self._rate, self._observer = Rate(), Observers(observer or Observer())
        self._jobs = dict[Job, asyncio.Task[Result | BaseException] | None]()
        self._changed, self.closed = Condition(), False
        self._telling = ThreadPoolExecutor(TELLING, "telling")
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="replicas", daemon=True)
        self._thread.start()

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
        """Accept a request, as `Service.submit` does, and ask a replica to draw it.

        Raises:
            Busy: Too many requests wait.
            InvalidRequest: The model cannot do what is asked for, or there is no such model.
            Stopping: The service is being stopped.
        """
        model = chosen(self.models, model)
        most = 1  # the replicas join calls, and measure how many rows those have
        job = Job.of(
            request, self.models[model], model, most, seconds=seconds, owner=owner, watcher=watcher, trace=trace
        )  # fmt: skip
        with self._changed:
            self.check_room()
            self._jobs[job] = None
        # In a context of its own: where the HTTP request that it came by ends, Ray gives up what belongs to that.
        contextvars.Context().run(asyncio.run_coroutine_threadsafe, self._run(job), self._loop)
        return job

    def is_loaded(self, name: str) -> None:
        """Return None: the replicas have the models, and Ray's own metrics tell which."""

    def check_room(self) -> None:
        """Raise what `submit` would raise now for a request that waits: `Busy` or `Stopping`."""
        with self._changed:
            if self.closed:
                raise Stopping()
            if self.waiting >= self._most_waiting:
                raise Busy(self.seconds_left(), self.waiting)

    def cancel(self, job: Job) -> None:
        """Give a job up; one that runs ends after its row."""
        job.cancel()
        with self._changed:
            drawing = self._jobs.get(job)
        if drawing is not None:
            self._loop.call_soon_threadsafe(drawing.cancel)

    def position(self, job: Job) -> int | None:
        """Return how many requests of its model were accepted before one that waits; None where it does not wait."""
        with self._changed:
            waiting = [one for one in self._jobs if one.stage == "waiting" and one.model == job.model]
        return waiting.index(job) if job in waiting else None

    def decode(self, job: Job, latents: Latents, stage: str) -> NDArray[np.uint8]:
        """Decode latents (N, C, h, w) of a job's stage to images (N, H, W, 3), by a replica."""
        return self._replicas.decode(job.model, latents, stage)

    def seconds_left(self) -> int:
        """Return in how many seconds, 1 or more, all that waits and runs is likely to be done."""
        with self._changed:
            work = sum(job.work for job in self._jobs)
        return max(1, math.ceil(self._rate.seconds(work) / self._number))

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        with self._changed:
            return sum(job.stage == "waiting" for job in self._jobs)

    @property
    def running(self) -> int:
        """How many requests run."""
        with self._changed:
            return len(self._jobs) - self.waiting

    def stop(self) -> None:
        """Refuse new requests; those that were accepted are drawn."""
        with self._changed:
            self.closed = True

    def give_up(self) -> None:
        """Give up all requests."""
        with self._changed:
            jobs = list(self._jobs)
        for job in jobs:
            job.cancel(Stopped("request", "the service was stopped"))
            self.cancel(job)

    def close(self, grace: float = 0.0) -> None:
        """Refuse new requests, and give up those that have not ended after `grace` seconds. The pipelines stay open."""
        self.stop()
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs, grace)
        self.give_up()
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs)
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._telling.shutdown()

    async def _run(self, job: Job) -> None:
        """Draw a job to its end."""
        outcome: Result | BaseException
        in_thread = partial(self._loop.run_in_executor, self._telling)
        drawing = self._loop.create_task(draw(job, self._replicas, partial(in_thread, self._tell, job)))
        with self._changed:
            self._jobs[job] = drawing
        try:
            outcome = await drawing  # which `cancel` may cancel, but not what follows
        except asyncio.CancelledError:
            outcome = _why_cancelled(job)
        except Exception as error:
            outcome = error
        await in_thread(self._end, job, outcome)

    def _tell(self, job: Job, message: Message) -> None:
        """Note what a replica tells of a job, and tell the job's watchers."""
        for batch in message.batches:
            self._rate.note(batch.rows, batch.lane.pixels, batch.seconds)
            self._observer.batch(batch)
        if isinstance(message, Row):
            if job.rows_began is None and message.encoding is not None:
                job.rows_began = job.accepted + job.seconds["waiting"] + message.encoding
            job.after_row(message.state)
        elif not isinstance(message, Ended) and job.stage == "waiting":
            job.begin()

    def _end(self, job: Job, outcome: Result | BaseException) -> None:
        """End a job, and tell its watchers and the observer."""
        job.end(outcome)
        self._observer.job(job)
        with self._changed:
            del self._jobs[job]
            self._changed.notify_all()


async def _others() -> None:
    """Wait for the last step of all other tasks of the loop."""
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)


def _why_cancelled(job: Job) -> LdmrtError:
    """Return why the drawing of a job was cancelled: the job was given up, or the replica has ended it."""
    try:
        job.check()
    except Cancelled as error:
        return error
    return Unavailable("request", "its replica was stopped")
