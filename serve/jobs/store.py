"""Find jobs by their names: all that wait or run, and the last that have ended."""

import time
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

from ldmrt.runtime.samplers.loop import State

from .job import Job


@dataclass(frozen=True)
class Ended:
    """Holds a job that has ended.

    Attributes:
        job: The job.
        since: When it ended, as `time.monotonic` counts.
        size: The bytes of its images and latents.
    """

    job: Job
    since: float
    size: int


class Jobs:
    """Finds jobs by their names. Threads may share it; each call takes the time of the jobs that it forgets."""

    def __init__(self, most: int, seconds: float, size: int) -> None:
        """Keep jobs that have ended: at most so many, each for so many seconds, and all together of so many bytes."""
        self._most, self._seconds, self._size, self._changing = most, seconds, size, Lock()
        self._open: dict[str, Job] = {}
        self._ended: OrderedDict[str, Ended] = OrderedDict()
        self.size = 0  # bytes of the jobs that have ended

    def __len__(self) -> int:
        """Return how many jobs are known."""
        with self._changing:
            return len(self._open) + len(self._ended)

    def add(self, job: Job) -> None:
        """Keep a job."""
        with self._changing:
            self._open[job.id] = job
        job.watch(self._note)

    def get(self, name: str) -> Job | None:
        """Return a job by its name; None where it is unknown or no longer kept."""
        with self._changing:
            self._forget()
            ended = self._ended.get(name)
            return self._open.get(name) if ended is None else ended.job

    def of(self, owner: str) -> list[Job]:
        """Return the jobs of an owner that wait or run."""
        with self._changing:
            return [job for job in self._open.values() if job.owner == owner]

    def _note(self, job: Job, state: State | None) -> None:
        """Note a job's end."""
        if not job.ended:
            return
        with self._changing:
            if self._open.pop(job.id, None) is not None:
                self._ended[job.id] = ended = Ended(job, time.monotonic(), job.size)
                self.size += ended.size
                self._forget()

    def _forget(self) -> None:
        """Forget the jobs that ended first, where they are too many, too large or too old."""
        now = time.monotonic()
        while self._ended:
            first = next(iter(self._ended.values()))
            if len(self._ended) <= self._most and self.size <= self._size and now - first.since <= self._seconds:
                return
            self._ended.popitem(last=False)
            self.size -= first.size
