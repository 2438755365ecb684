"""Draw the lines of a file by a service, a bounded number of them at a time, and index them in their order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.pipeline.call import Result
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.loop import State
from ldmrt.serve.batching.room import rows_per_call
from ldmrt.serve.jobs.job import Cancelled, Job
from ldmrt.serve.jobs.service import Service
from ldmrt.serve.models.models import fixed

from .index import Entry, Index
from .lines import Line
from .requests import Reader

MOST = 2**16  # rows of a call, where no number of images is asked for
AT_ONCE = 32  # most lines that are drawn at the same time, each of which is a thread
LOOK = 0.2  # seconds, after which a run that waits for a line looks whether it shall stop
FAILS = (LdmrtError, MemoryError)  # what fails a line alone; anything else ends the run

# Writes the images of a line, and returns their files: (line, request, its values by short words, result).
Save = Callable[[Line, Request, JsonObject, Result], Sequence[Path]]


def service_of(name: str, pipeline: Pipeline, example: Request, images: int | None) -> tuple[Service, int]:
    """Start a service for requests that are mostly like an example.

    Args:
        name: The model's name.
        pipeline: The model.
        example: What most lines ask for.
        images: How many images a call of the U-Net is for; by default as many as fit.

    Returns:
        The service, and how many requests it has room for. As many of them run as fill a call, and one that is encoded
        or decoded meanwhile; as many again wait. Of networks that take turns in memory one runs.
    """
    each = pipeline.guidance_rows(example)
    rows = MOST if images is None else images * each
    fitting = rows_per_call(pipeline, pipeline.size(example), rows)
    filling = 0 if pipeline.engines.take_turns else -(-fitting // (each * example.num_images_per_prompt))
    at_once = min(AT_ONCE, 1 + filling)
    return Service(fixed({name: pipeline}, {name: rows}), running=at_once, waiting=2 * at_once), 2 * at_once


@dataclass(frozen=True)
class Submitted:
    """Holds a line that is being drawn, or is done and waits for those before it."""

    line: Line
    entry: "Future[Entry]"
    job: Job | None = None


class Run:
    """Draws lines: those of a window are in the service at the same time.

    While the first line of the window is drawn, the images of later ones are written already, but only the index says
    that a line is done.
    """

    def __init__(self, service: Service, reader: Reader, save: Save, *, window: int) -> None:
        """Take what draws.

        Args:
            service: Draws; it has room for as many requests as the window has lines. It is closed at the end.
            reader: Makes requests of lines.
            save: Writes the images of a line. Several threads call it.
            window: How many lines are read ahead of the first that is not in the index.
        """
        self._service, self._reader, self._save, self._window = service, reader, save, window

    def __call__(self, lines: Iterable[Line], index: Index, stopping: Callable[[], bool]) -> Iterator[Entry]:
        """Draw lines, add them to the index, and yield their entries, in the order of the lines.

        Args:
            lines: The lines after the last one of the index.
            index: The index.
            stopping: Tells whether to stop: what is being drawn is finished, and nothing more is begun.
        """
        waiting, left, stopped = deque[Submitted](), iter(lines), False
        try:
            while True:
                if not stopped and stopping():
                    stopped = True
                    self._give_up(waiting)
                while not stopped and len(waiting) < self._window and (line := next(left, None)) is not None:
                    waiting.append(self._begin(line))
                if not waiting:
                    return
                begun = waiting[0]
                if not wait([begun.entry], LOOK).done:
                    continue
                try:
                    entry = begun.entry.result()
                except Cancelled:
                    return
                waiting.popleft()
                index.append(begun.line, entry)
                yield entry
        finally:
            self._service.close()

    def _give_up(self, waiting: Sequence[Submitted]) -> None:
        """Give up the lines that wait for room in the service; the last first, as each that ends makes room."""
        for begun in reversed(waiting):
            if begun.job is not None and begun.job.stage == "waiting":
                self._service.cancel(begun.job)

    def _begin(self, line: Line) -> Submitted:
        """Let the service draw a line, unless nothing is to be drawn."""
        entry: Future[Entry] = Future()
        if line.is_blank:
            entry.set_result(Entry(line.number, "blank", input=line.digest))
            return Submitted(line, entry)
        try:
            request, values = self._reader.request(line)

            def watcher(job: Job, state: State | None) -> None:
                if state is None and job.ended:
                    self._end(line, request, values, job, entry)

            return Submitted(line, entry, self._service.submit(request, watcher=watcher))
        except FAILS as error:
            entry.set_result(failed(line, error))
            return Submitted(line, entry)

    def _end(self, line: Line, request: Request, values: JsonObject, job: Job, entry: "Future[Entry]") -> None:
        """Write the images of a job that has ended, in its thread, and make the line's entry."""
        try:
            result = job.result()
        except Cancelled as error:
            entry.set_exception(error)
            return
        except FAILS as error:
            entry.set_result(failed(line, error))
            return
        except BaseException as error:
            entry.set_exception(error)
            return
        try:
            files = tuple(path.as_posix() for path in self._save(line, request, values, result))
        except BaseException as error:
            entry.set_exception(error)
            return
        entry.set_result(Entry(line.number, "done", files, tuple(result.seeds), input=line.digest))


def failed(line: Line, error: BaseException) -> Entry:
    """Return the entry of a line that has failed."""
    text = str(error).replace("\n  try: ", "; try: ") or type(error).__name__
    return Entry(line.number, "failed", error=text, input=line.digest)
