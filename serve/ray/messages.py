"""Define what a replica sends of a request that it draws: that it has begun, its rows, and how it has ended."""

from dataclasses import dataclass, replace

import numpy as np

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.pipeline.call import Result
from ldmrt.runtime.samplers.loop import State
from ldmrt.runtime.samplers.plan import Latents
from ldmrt.serve.batching.dispatcher import Batch
from ldmrt.serve.jobs.job import Job


@dataclass(frozen=True)
class Message:
    """Tells of a request: by itself that it has begun.

    Attributes:
        batches: The calls of U-Nets that the replica has run since its last message, of whatever requests.
    """

    batches: tuple[Batch, ...] = ()


@dataclass(frozen=True)
class Row(Message):
    """Tells that a row has run.

    Attributes:
        row: Its number, from 0.
        rows: How many the request has.
        stage: The stage of a cascade that it belongs to.
        encoding: The seconds from the request's begin to the first call of the U-Net; None where it is not known.
        x0: What it predicts, latents (N, C, h, w), for previews.
    """

    row: int = 0
    rows: int = 0
    stage: str = "base"
    encoding: float | None = None
    x0: Latents | None = None

    @classmethod
    def of(cls, job: Job, state: State) -> "Row":
        """Take what is sent of a job's row."""
        began = job.accepted + job.seconds["waiting"]
        encoding = None if job.rows_began is None else job.rows_began - began
        return cls(row=state.row, rows=state.rows, stage=state.stage, encoding=encoding, x0=np.array(state.x0))

    @property
    def state(self) -> State:
        """The row's state as watchers are told of it; all its latents are those of the prediction."""
        assert self.x0 is not None
        x0 = self.x0
        return State(self.row, self.rows, x0, lambda: x0, self.stage)


@dataclass(frozen=True)
class Ended(Message):
    """Tells how a request has ended.

    Attributes:
        outcome: Its images, or the error that ended it.
    """

    outcome: Result | BaseException | None = None

    @classmethod
    def by(cls, outcome: Result | BaseException) -> "Ended":
        """Take an outcome as other processes can have it: errors of other libraries by their words alone."""
        if isinstance(outcome, (Result, LdmrtError)):
            return cls(outcome=outcome)
        return cls(outcome=RuntimeError(f"a replica: {type(outcome).__name__}: {outcome}"))


def owned(result: Result) -> Result:
    """Copy a result out of Ray's object store, which would keep its memory for as long as the result is kept."""
    latents = result.latents.copy()
    return replace(result, array=latents if result.array is result.latents else result.array.copy(), latents=latents)
