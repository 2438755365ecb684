"""Decode what rows predict beside the threads that draw, once a row for all who watch a request."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

import numpy as np

from ldmrt.runtime.samplers.loop import State
from ldmrt.runtime.samplers.plan import Latents

from .job import Job

Decode = Callable[[Job, Latents, str], list[bytes]]
log = logging.getLogger("ldmrt.serve")


class Previews:
    """Decodes what rows predict, in a thread of its own: a request is not held up by those who watch it.

    A row that is still waiting to be decoded when the next one has ended is left out.
    """

    def __init__(self, decode: Decode) -> None:
        """Take what decodes latents (N, C, h, w) of a job's stage to N image files."""
        self._decode, self._changing = decode, Lock()
        self._thread = ThreadPoolExecutor(1, "previews")
        self._last = dict[Job, dict[int, tuple[tuple[str, int], Future[list[bytes]]]]]()

    def of(self, job: Job, state: State, images: int = 1) -> "Future[list[bytes]]":
        """Return the files of the first images that a row predicts, as soon as they are decoded.

        Call it in the watcher of the row: what a row predicts is gone when the next one has run. The future is
        cancelled where the row is left out, and has the error where decoding fails.

        Args:
            job: The job.
            state: Its state after the row.
            images: How many of the job's images.
        """
        with self._changing:
            known = job in self._last
            rows = self._last.setdefault(job, {})
            row, files = rows.get(images, (("", -1), Future()))
            if row == (state.stage, state.row):
                return files
            files.cancel()
            x0 = np.array(state.x0[:images])
            files = self._thread.submit(self._decode, job, x0, state.stage)
            rows[images] = (state.stage, state.row), files
        if not known:
            job.watch(self._forget)
        return files

    def close(self) -> None:
        """Decode no more: what waits is left out."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _forget(self, job: Job, state: State | None) -> None:
        """Forget the files of a job that has ended."""
        if job.ended:
            with self._changing:
                self._last.pop(job, None)


def decoded(files: "Future[list[bytes]]", job: Job) -> list[bytes]:
    """Return the files of a future that is done; none where its row was left out or decoding has failed.

    A failure is logged: it must not end the request.
    """
    if files.cancelled():
        return []
    if error := files.exception():
        log.error("no preview of %s", job.id, exc_info=error)
        return []
    return files.result()
