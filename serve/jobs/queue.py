"""Order the jobs that wait: first come, first served within a lane, and no lane waits for another."""

from collections import deque
from collections.abc import Iterator

from ldmrt.serve.batching.lanes import Lane

from .job import Job


class Queue:
    """Holds the jobs that wait and those that run; its callers hold a lock."""

    def __init__(self) -> None:
        """Begin without jobs."""
        self._waiting: dict[Lane, deque[Job]] = {}
        self.running: list[Job] = []

    def __len__(self) -> int:
        """Return how many jobs wait."""
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Job]:
        """Iterate over the jobs that wait, lane by lane."""
        for jobs in self._waiting.values():
            yield from jobs

    def add(self, job: Job) -> None:
        """Let a job wait behind those of its lane."""
        self._waiting.setdefault(job.lane, deque()).append(job)

    def position(self, job: Job) -> int | None:
        """Return how many jobs of its lane are before one that waits; None where it does not wait."""
        return next((place for place, one in enumerate(self._waiting.get(job.lane, ())) if one is job), None)

    def drop_given_up(self) -> list[Job]:
        """Remove the jobs that were given up while they waited, and return them."""
        gone = [job for job in self if job.given_up]
        for job in gone:
            self._waiting[job.lane].remove(job)
        self._forget_empty()
        return gone

    def admit(self, most: int) -> list[Job]:
        """Move the jobs for which there is room to those that run, and return them; at most so many run.

        In each lane those that run have as many rows as a call, or there is one.
        """
        begun = list[Job]()
        for lane, jobs in self._waiting.items():
            rows = sum(job.rows for job in self.running if job.lane == lane)
            while jobs and len(self.running) < most and (not rows or rows + jobs[0].rows <= lane.most):
                rows += jobs[0].rows
                self.running.append(jobs[0])
                begun.append(jobs.popleft())
        self._forget_empty()
        return begun

    def _forget_empty(self) -> None:
        """Forget lanes in which no job waits: callers may ask for any number of sizes."""
        self._waiting = {lane: jobs for lane, jobs in self._waiting.items() if jobs}
