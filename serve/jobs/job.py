"""Hold a request from the moment that it is accepted to its result."""

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.pipeline.call import Result
from ldmrt.runtime.pipeline.loras.asked import asked
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.loop import State
from ldmrt.serve.batching.lanes import Lane
from ldmrt.serve.batching.room import lane_of
from ldmrt.serve.models.models import Model

if TYPE_CHECKING:
    from PIL.Image import Image

Stage = Literal["waiting", "running", "done", "failed", "cancelled"]
Watcher = Callable[["Job", State | None], object]
log = logging.getLogger("ldmrt.serve")


class Cancelled(LdmrtError):
    """A request was given up: by its caller, or for one of the reasons below."""


class DeadlinePassed(Cancelled):
    """A request was given up because its deadline has passed."""


class Stopped(Cancelled):
    """A request was given up because the service ends."""


@dataclass(eq=False)
class Job:
    """Holds a request that was accepted.

    Attributes:
        lane: What it can share batches with, in the stage that it begins at.
        request: What is asked for.
        calls: How many times the U-Nets run for it.
        rows: How many rows each of those calls has: images times rows of guidance.
        deadline: When it is given up, as `time.monotonic` counts; None for never.
        owner: Who asked; requests of one owner may be limited.
        model: The name of the model that draws it.
        used: That model, while it runs.
        id: Names it.
        due: The jobs of its lane that are due before it run first; a time as `time.monotonic` counts.
        accepted: When it was accepted, as `time.monotonic` counts.
        seconds: How long it has waited and, where it has ended, how long it took in all.
        called: How many calls have run.
        trace: The headers of the caller's trace, see `tracing`.
        rows_began: When the U-Net was first called, as `time.monotonic` counts; None where it was not, or none is
            shared.
        record: The `record` of the pipeline that draws it.
    """

    lane: Lane
    request: Request
    calls: int
    rows: int
    deadline: float | None = None
    owner: str = ""
    model: str = ""
    used: Model | None = field(default=None, repr=False)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    due: float = 0.0
    accepted: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)
    called: int = 0
    trace: Mapping[str, str] = field(default_factory=dict)
    rows_began: float | None = None
    record: JsonObject | None = field(default=None, repr=False)
    _begun: bool = False
    _result: "Future[Result]" = field(default_factory=Future, repr=False)
    _watchers: list[Watcher] = field(default_factory=list, repr=False)
    _why: Cancelled | None = None
    _changing: Lock = field(default_factory=Lock, repr=False)

    @classmethod
    def of(
        cls,
        request: Request,
        pipeline: Pipeline,
        model: str,
        most: int,
        *,
        seconds: float | None = None,
        owner: str = "",
        watcher: Watcher | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> "Job":
        """Make the job of a request.

        Args:
            request: What is asked for.
            pipeline: The model, which checks the request.
            model: Its name.
            most: How many rows a call of its U-Net has at most, at its own size.
            seconds: After so many seconds it is given up.
            owner: Who asks.
            watcher: Watches it from the beginning.
            trace: The headers of the caller's trace.

        Raises:
            InvalidRequest: The model cannot do what is asked for.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        rows = request.total_images * pipeline.guidance_rows(request)
        loras = pipeline.loras.active(asked(request, pipeline.loras))
        lane = lane_of(pipeline, model, pipeline.size(request), most, loras)
        about: dict[str, Any] = {"owner": owner, "model": model, "trace": trace or {}, "record": pipeline.record}
        job = cls(lane, request, pipeline.rows(request), rows, deadline, **about)
        if watcher is not None:
            job.watch(watcher)
        return job

    @property
    def stage(self) -> Stage:
        """How far it is."""
        if not self.ended:
            return "running" if self._begun else "waiting"
        if self.error is None:
            return "done"
        return "cancelled" if isinstance(self.error, Cancelled) else "failed"

    @property
    def size(self) -> int:
        """The bytes of the images that it was given, and of those that it has made with their latents."""
        result = self.result(0) if self.stage == "done" else None
        return given_bytes(self.request) + (0 if result is None else result.array.nbytes + result.latents.nbytes)

    @property
    def work(self) -> int:
        """What is left to do: rows times pixels."""
        return max(0, self.calls - self.called) * self.rows * self.lane.pixels

    @property
    def given_up(self) -> bool:
        """Whether it was cancelled or its deadline has passed."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.cancel(DeadlinePassed("request", "its deadline has passed"))
        return self._why is not None

    @property
    def ended(self) -> bool:
        """Whether it is done, has failed or was cancelled."""
        return self._result.done()

    def watch(self, watcher: Watcher) -> None:
        """Call a function with the job and its state after each row, and with None where its stage has changed.

        It is called at once if the job has ended already; from other threads else. An error of it is logged, and
        concerns neither the job nor other watchers.
        """
        with self._changing:
            if not self.ended:
                self._watchers.append(watcher)
                return
        self._call(watcher, None)

    def unwatch(self, watcher: Watcher) -> None:
        """Call a function no more."""
        with self._changing, contextlib.suppress(ValueError):
            self._watchers.remove(watcher)

    @property
    def error(self) -> BaseException | None:
        """What ended the job in the place of a result; None where nothing did."""
        return self._result.exception(0) if self.ended else None

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the images.

        Raises:
            Cancelled: It was cancelled, or its deadline has passed.
            LdmrtError: It has failed.
            TimeoutError: It has not ended after so many seconds.
        """
        return self._result.result(timeout)

    def cancel(self, why: Cancelled | None = None) -> None:
        """Give the job up; one that runs ends after its row."""
        self._why = self._why or why or Cancelled("request", "cancelled by its caller")

    def check(self) -> None:
        """Raise `Cancelled` if the job was given up or its deadline has passed."""
        if self.given_up and self._why is not None:
            raise self._why

    def begin(self) -> None:
        """Note that the job runs; raises `Cancelled` if it was given up."""
        self.check()
        self.seconds["waiting"] = time.monotonic() - self.accepted
        self._begun = True
        self._tell(None)

    def wait_again(self) -> None:
        """Note that the job waits once more, to be drawn from its first row."""
        self.called, self.rows_began, self._begun = 0, None, False

    def after_row(self, state: State) -> None:
        """Note that a row has run; raises `Cancelled` if the job was given up."""
        self.called += 1
        self._tell(state)
        self.check()

    def end(self, outcome: Result | BaseException) -> None:
        """Note the result, or the error that ended the job, and tell the watchers; they may take their time."""
        with self._changing:
            self.seconds["total"] = time.monotonic() - self.accepted
            if isinstance(outcome, Result):
                self._result.set_result(outcome)
            else:
                self._result.set_exception(outcome)
        self._tell(None)
        self._watchers.clear()

    def end_given_up(self) -> None:
        """End a job that was given up while it waited."""
        try:
            self.check()
        except Cancelled as error:
            self.end(error)

    def _tell(self, state: State | None) -> None:
        for watcher in list(self._watchers):
            self._call(watcher, state)

    def _call(self, watcher: Watcher, state: State | None) -> None:
        """Call a watcher; an error of it is logged."""
        try:
            watcher(self, state)
        except Exception:
            log.exception("a watcher of request %s failed", self.id)


def given_bytes(request: Request) -> int:
    """Return the bytes of a request's own images, decoded."""
    return sum(
        map(image_bytes, (request.image, request.mask_image, request.ip_adapter_image, *request.controls.values()))
    )


def image_bytes(image: object) -> int:
    """Return the bytes of an image, of a list of them, or of (image, scale); 0 for what is not in memory."""
    if isinstance(image, np.ndarray):
        return image.nbytes
    if isinstance(image, (list, tuple)):
        return sum(map(image_bytes, image))
    if not hasattr(image, "getbands"):
        return 0
    decoded = cast("Image", image)
    return decoded.width * decoded.height * len(decoded.getbands())
