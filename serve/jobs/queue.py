"""Order the jobs that wait: by when they are due within a lane, and no lane waits for another.

A job is due some multiple of its own time after it came, so short ones overtake long ones; a long one is overtaken only
by what comes within that time, and never waits for ever. Equal jobs are served as they came.
"""

from bisect import insort
from collections.abc import Callable, Iterator

from ldmrt.runtime.pipeline.loras.loaded import KEPT
from ldmrt.serve.batching.lanes import Lane

from .job import Job


class Queue:
    """Holds the jobs that wait and those that run; its callers hold a lock."""

    def __init__(self) -> None:
        """Begin without jobs."""
        self._waiting: dict[Lane, list[Job]] = {}
        self.running: list[Job] = []

    def __len__(self) -> int:
        """Return how many jobs wait."""
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Job]:
        """Iterate over the jobs that wait, lane by lane."""
        for jobs in self._waiting.values():
            yield from jobs

    def add(self, job: Job) -> None:
        """Let a job wait behind those of its lane that are due before it."""
        insort(self._waiting.setdefault(job.lane, []), job, key=lambda other: other.due)

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

    def models(self) -> list[str]:
        """Name the models of the jobs that are next in their lanes, in the order in which those were accepted."""
        following = sorted((jobs[0] for jobs in self._waiting.values()), key=lambda job: job.accepted)
        return [job.model for job in following]

    def admit(self, most: int, takes_requests: Callable[[str], bool]) -> list[Job]:
        """Move the jobs for which there is room to those that run, and return them; at most so many run.

        In each lane those that run have as many rows as a call, or there is one. `takes_requests` tells of a model
        whether its jobs may begin. Of a model as many sets of LoRAs are drawn with at a time as a pipeline keeps; where
        one has to wait for that, so do those that were asked for after it, and it comes as soon as one has ended.
        """
        begun, full = list[Job](), set[str]()
        for lane, jobs in sorted(self._waiting.items(), key=lambda each: each[1][0].accepted):
            model = jobs[0].model
            if not takes_requests(model):
                continue
            if lane.loras:
                sets = {job.lane.loras for job in self.running if job.model == model and job.lane.loras}
                if model in full or len(sets | {lane.loras}) > KEPT:
                    full.add(model)
                    continue
            rows = sum(job.rows for job in self.running if job.lane == lane)
            while jobs and len(self.running) < most and (not rows or rows + jobs[0].rows <= lane.most):
                rows += jobs[0].rows
                self.running.append(jobs[0])
                begun.append(jobs.pop(0))
        self._forget_empty()
        return begun

    def _forget_empty(self) -> None:
        """Forget lanes in which no job waits: callers may ask for any number of sizes."""
        self._waiting = {lane: jobs for lane, jobs in self._waiting.items() if jobs}
