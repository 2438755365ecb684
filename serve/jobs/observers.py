"""Tell what a service does: to several observers, and in a log of one line for each request that has ended."""

import json
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from ldmrt.runtime.errors import LdmrtError
from ldmrt.serve.batching.dispatcher import Batch

from .job import Job

Event = TypeVar("Event")
log = logging.getLogger("ldmrt.serve")


class Observer:
    """Is told what happens, for measurements; does nothing."""

    def batch(self, batch: Batch) -> None:
        """Note a call of a network that has run."""

    def job(self, job: Job) -> None:
        """Note a job that has ended."""


class Observers(Observer):
    """Tells several observers; an error of one of them is logged, and concerns nobody else."""

    def __init__(self, *observers: Observer) -> None:
        """Take the observers."""
        self._observers = observers

    def batch(self, batch: Batch) -> None:
        """Note a call of a network that has run."""
        for observer in self._observers:
            guarded(observer.batch, batch)

    def job(self, job: Job) -> None:
        """Note a job that has ended."""
        for observer in self._observers:
            guarded(observer.job, job)


def guarded(tell: Callable[[Event], object], event: Event) -> None:
    """Tell an observer something; an error of it is logged."""
    try:
        tell(event)
    except Exception:
        log.exception("an observer failed")


class JobLog(Observer):
    """Logs each request that has ended, without its prompt; a bug of the server with its traceback."""

    def job(self, job: Job) -> None:
        """Log a job that has ended."""
        fields = described(job)
        text = " ".join(f"{name}={value}" for name, value in fields.items())
        bug = job.error if job.stage == "failed" and not isinstance(job.error, LdmrtError) else None
        log.log(logging.ERROR if bug else logging.INFO, text, exc_info=bug, extra={"fields": fields})


def described(job: Job) -> dict[str, Any]:
    """Return what the log says of a job that has ended."""
    seconds = {name: round(taken, 4) for name, taken in job.seconds.items()}
    if job.stage == "done":
        seconds |= {name: round(taken, 4) for name, taken in job.result(0).seconds.items()}
    told: dict[str, Any] = {"request": job.id, "model": job.model, "owner": job.owner, "stage": job.stage}
    told |= {"calls": job.called, "rows": job.called * job.rows, "seconds": seconds}
    if job.error is not None:
        told["error"] = type(job.error).__name__
    return told


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line: time, level, logger, the fields or else the message, and the traceback if there is one."""
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
        }
        line |= getattr(record, "fields", None) or {"message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
