"""Accept requests, run those that fit together, and refuse what cannot be served in time."""

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from threading import Condition, Lock, Thread

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.pipeline.call import Result
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.loop import State
from ldmrt.runtime.samplers.plan import Latents
from ldmrt.serve.batching.dispatcher import Batch, Dispatcher, Stopping
from ldmrt.serve.batching.engines import JoinedEngines
from ldmrt.serve.batching.lanes import Lane
from ldmrt.serve.batching.room import lane_of
from ldmrt.serve.models.models import Model, Models
from ldmrt.serve.models.naming import chosen

from .defaults import WAITING
from .job import Job, Stopped, Watcher
from .observers import Observer, Observers
from .queue import Queue
from .rate import Rate

RUNNING = 32  # jobs, each of which is a thread
OVERTAKEN = 4.0  # times its own duration: shorter requests that come within it are served before a request
LEAST_WAIT = 0.001  # seconds between two looks at the deadlines: a wait may end just before its time


class Busy(LdmrtError):
    """As many requests wait as may; `retry_after` are the seconds after which there is likely room."""

    def __init__(self, retry_after: int, waiting: int) -> None:
        """Say how many wait, and when to come back."""
        super().__init__("serve", "too many requests wait", found=waiting, hint=f"again in {retry_after} s")
        self.retry_after = retry_after


class Service:
    """Serves models: requests wait in a queue, and those that run share the calls of the U-Net.

    Attributes:
        models: The pipelines by name.
        closed: Whether it takes no more requests.
    """

    def __init__(
        self,
        models: Models,
        *,
        waiting: int = WAITING,
        running: int = RUNNING,
        observer: Observer | None = None,
    ) -> None:
        """Start to serve.

        Args:
            models: The pipelines by name; the first is the default. The service does not close them.
            waiting: How many requests may wait.
            running: How many may run.
            observer: Told of each batch and each job that has ended.
        """
        self.models, self._rate, self._observer = models, Rate(), Observers(observer or Observer())
        self._queue, self._changed, self.closed, self._alone = Queue(), Condition(), False, Lock()
        self._most_waiting, self._most_running = waiting, running
        self._ending = 0  # jobs whose watchers are told of the end, and previews that are decoded
        self._dispatcher, self._over = Dispatcher(self._note), False
        self._deadlines = Thread(target=self._keep_deadlines, name="deadlines", daemon=True)
        self._deadlines.start()

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
        """Accept a request; it begins when there is room.

        Args:
            request: What is asked for.
            model: The model's name; the first by default.
            seconds: After so many seconds it is given up.
            owner: Who asks.
            watcher: Called as `Job.watch` says, from the beginning.
            trace: The headers of the caller's trace.

        Raises:
            Busy: Too many requests wait.
            InvalidRequest: The model cannot do what is asked for, or there is no such model.
            Stopping: The service is being stopped.
        """
        model = chosen(self.models, model)
        used = self.models.model(model)
        job = Job.of(
            request, used.pipeline, model, used.rows, seconds=seconds, owner=owner, watcher=watcher, trace=trace
        )  # fmt: skip
        with self._changed:
            self.check_room()
            job.due = job.accepted + OVERTAKEN * self._rate.seconds(job.work)
            self._queue.add(job)
            self._admit()
            self._changed.notify_all()  # its deadline may be the next one
        return job

    def is_loaded(self, name: str) -> bool:
        """Tell whether a model is in memory."""
        return self.models.is_loaded(name)

    def replace_model(self, name: str, pipeline: Pipeline) -> None:
        """Draw the requests of a model that begin from now on with another pipeline.

        The old one is closed when those that run have ended. One of them that fails is drawn again by the new one, as
        the old one may have found its files replaced.
        """
        with self._changed:
            self.models.put(name, pipeline)
            self._admit()

    def check_room(self) -> None:
        """Raise what `submit` would raise now for a request that waits: `Busy` or `Stopping`."""
        with self._changed:
            if self.closed:
                raise Stopping()
            self._admit()  # those whose deadline has passed make room
            if len(self._queue) >= self._most_waiting:
                raise Busy(self.seconds_left(), len(self._queue))

    def cancel(self, job: Job) -> None:
        """Give a job up: one that waits at once, one that runs after its row."""
        job.cancel()
        with self._changed:
            self._admit()

    def position(self, job: Job) -> int | None:
        """Return how many requests of its size are before one that waits; None where it does not wait."""
        with self._changed:
            return self._queue.position(job)

    def decode(self, job: Job, latents: Latents, stage: str) -> NDArray[np.uint8]:
        """Preview latents (N, C, h, w) of a stage of a job's model as images (N, H, W, 3).

        There are none if the job has ended, or where a safety checker may blacken its images.
        """
        with self._changed:
            if job.used is None:
                return np.empty((0, 0, 0, 3), np.uint8)
            model = self.models.begin(job.used)
            self._ending += 1
        try:
            with self._alone:
                return model.pipeline.public_preview(latents, stage)
        finally:
            with self._changed:
                self.models.end(model)
                self._ending -= 1
                self._admit()
                self._changed.notify_all()

    def seconds_left(self) -> int:
        """Return in how many seconds, 1 or more, all that waits and runs is likely to be done."""
        with self._changed:
            work = sum(job.work for job in [*self._queue, *self._queue.running])
        return max(1, math.ceil(self._rate.seconds(work)))

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        with self._changed:
            return len(self._queue)

    @property
    def running(self) -> int:
        """How many requests run."""
        with self._changed:
            return len(self._queue.running)

    def stop(self) -> None:
        """Refuse new requests; those that were accepted are drawn."""
        with self._changed:
            self.closed = True

    def give_up(self) -> None:
        """Give up all requests: those that wait at once, those that run after their row."""
        with self._changed:
            for job in [*self._queue, *self._queue.running]:
                job.cancel(Stopped("request", "the service was stopped"))
            self._admit()

    def close(self, grace: float = 0.0) -> None:
        """Refuse new requests, and give up those that have not ended after `grace` seconds. The pipelines stay open."""
        self.stop()
        with self._changed:
            self._changed.wait_for(lambda: not (self._queue or self._queue.running or self._ending), grace)
            self.give_up()
            self._changed.wait_for(lambda: not (self._queue.running or self._ending))
            self._over = True
            self._changed.notify_all()
        self._deadlines.join()
        self._dispatcher.close()

    def _keep_deadlines(self) -> None:
        """Give up jobs whose deadline passes while they wait."""
        with self._changed:
            while not self._over:
                deadlines = [job.deadline for job in self._queue if job.deadline is not None]
                wait = max(min(deadlines) - time.monotonic(), LEAST_WAIT) if deadlines else None
                self._changed.wait(wait)
                self._admit()

    def _admit(self) -> None:
        """Drop jobs that were given up, and start as many others as there is room for."""
        for job in self._queue.drop_given_up():
            job.end_given_up()
            self._observer.job(job)
        if len(self._queue.running) < self._most_running:
            self.models.make_room(self._queue.models())
        for job in self._queue.admit(self._most_running, self.models.takes_requests):
            self._start(job)

    def _start(self, job: Job) -> None:
        """Run a job in a thread of its own; it fails where the system has no more of them."""
        job.used = self.models.begin(self.models.model(job.model))
        job.record = job.used.pipeline.record
        try:
            Thread(target=self._run, args=(job, job.used), name=f"job {job.id}", daemon=True).start()
        except RuntimeError as error:
            self._end(job, job.used, error)

    def _run(self, job: Job, model: Model) -> None:
        """Run a job to its end."""
        outcome: Result | BaseException
        with ExitStack() as seats:
            try:
                job.begin()
                assert model.room is not None
                model.room.result()
                stages = [self._shared(stage, job, model, seats) for stage in model.pipeline.stages]
                outcome = replace(stages[0], later=tuple(stages[1:])).generate(job.request)
            except BaseException as error:
                outcome = error
        if model.replaced and isinstance(outcome, LdmrtError) and not job.given_up:
            self._wait_again(job, model)
        else:
            self._end(job, model, outcome)
        if isinstance(outcome, BaseException):  # the job may be kept: let go of what the frames hold
            outcome.__traceback__ = outcome.__context__ = outcome.__cause__ = None

    def _wait_again(self, job: Job, model: Model) -> None:
        """Let a job wait that has failed with a model which was replaced meanwhile."""
        with self._changed:
            self._leave(job, model)
            job.wait_again()
            self._queue.add(job)
            self._admit()
            self._changed.notify_all()

    def _leave(self, job: Job, model: Model) -> None:
        """Take a job from those that run."""
        self._queue.running.remove(job)
        self.models.end(model)
        job.used = None

    def _end(self, job: Job, model: Model, outcome: Result | BaseException) -> None:
        """End a job that runs; whoever is told of it sees that its place is free, and holds up no other job."""
        with self._changed:
            self._leave(job, model)
            self._ending += 1
            self._admit()
            self._changed.notify_all()
        job.end(outcome)
        self._observer.job(job)
        with self._changed:
            self._ending -= 1
            self._changed.notify_all()

    def _shared(self, stage: Pipeline, job: Job, model: Model, seats: ExitStack) -> Pipeline:
        """Return a stage for one job, whose networks are shared with other jobs.

        Where the networks do not fit into memory together, jobs run one by one, as the stage's own turns have it.
        """
        if stage.engines.take_turns:
            return replace(stage, watch=job.after_row)
        factor = stage.stage.space.factor

        def lane(latents: tuple[int, ...]) -> Lane:
            height, width = latents
            job.rows_began = job.rows_began or time.monotonic()
            loras = job.lane.loras if stage is model.pipeline else ()  # those of later stages are none
            return lane_of(stage, job.model, (height * factor, width * factor), model.rows, loras)

        def watch(state: State) -> None:
            if state.row + 1 == state.rows:
                engines.leave()
            job.after_row(state)

        engines = JoinedEngines(stage.engines, self._dispatcher, lane, self._alone)
        seats.callback(engines.leave)
        return replace(stage, engines=engines, watch=watch)

    def _note(self, batch: Batch) -> None:
        self._rate.note(batch.rows, batch.lane.pixels, batch.seconds)
        self._observer.batch(batch)
