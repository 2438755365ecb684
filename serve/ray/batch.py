"""Draw the lines of a file by Ray Data: its actors draw, and this process alone writes images and index."""

import logging
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import ray
import ray.data

from ldmrt.runtime.pipeline.call import Result
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.serve.batch.index import Entry, Index
from ldmrt.serve.batch.lines import Line
from ldmrt.serve.batch.requests import Reader
from ldmrt.serve.batch.run import FAILS, Save, failed, service_of
from ldmrt.serve.jobs.job import Job

from .scale import Scale

TOGETHER = 16  # lines that an actor is given at a time
MOST_LINES = 256  # of a block, which is drawn again where its actor is lost
BLOCKS = 4  # for each actor at least, so that all of them have something to do
WRITING = 4  # threads that encode and write images
ROW = pa.schema([("number", pa.int64()), ("text", pa.large_string()), ("digest", pa.string())])


@dataclass(frozen=True)
class Drawing:
    """Says how lines are drawn, wherever that is.

    Attributes:
        bundle: The bundle's folder, which all machines see, or its name on the hub.
        opening: Arguments of `open_pipeline`.
        reader: Makes requests of lines.
        example: What most lines ask for.
        images: How many images a call of the U-Net is for; None for as many as fit.
    """

    bundle: str
    opening: Mapping[str, Any]
    reader: Reader
    example: Request
    images: int | None


class Actor:
    """Draws lines in a process of its own, which opens the bundle once."""

    def __init__(self, drawing: Drawing) -> None:
        """Open the bundle."""
        self._reader, self._pipeline = drawing.reader, open_pipeline(drawing.bundle, **drawing.opening)
        self._service, self._room = service_of("model", self._pipeline, drawing.example, drawing.images)

    def __call__(self, lines: pa.Table) -> pa.Table:
        """Draw lines, and return them with their outcomes, pickled: a `Result`, an error, or None for a blank line.

        Raises:
            Exception: An error that is not one line's alone.
        """
        outcomes, begun = list[Result | BaseException | None](), deque[Job | BaseException | None]()
        for row in lines.to_pylist():
            if len(begun) == self._room:
                outcomes.append(_outcome(begun.popleft()))
            begun.append(self._begin(Line(**row)))
        outcomes += map(_outcome, begun)
        pickled = pa.array([pickle.dumps(outcome, 5) for outcome in outcomes], pa.large_binary())
        return lines.append_column("outcome", pickled)

    def _begin(self, line: Line) -> Job | BaseException | None:
        """Let the service draw a line, unless nothing is to be drawn."""
        if line.is_blank:
            return None
        try:
            return self._service.submit(self._reader.request(line)[0])
        except FAILS as error:
            return error


def _outcome(begun: Job | BaseException | None) -> Result | BaseException | None:
    """Wait for a line that was begun."""
    if not isinstance(begun, Job):
        return begun
    try:
        return begun.result()
    except FAILS as error:
        return error


class RayRun:
    """Draws lines as `Run` does, by the actors of a Ray cluster. A line that is drawn is written once.

    Where an actor is lost, another one draws its lines. Where this process is, the next run draws what is not in the
    index.
    """

    def __init__(self, drawing: Drawing, scale: Scale, count: int, save: Save) -> None:
        """Take what draws; the process has joined a cluster.

        Args:
            drawing: How lines are drawn.
            scale: How many actors draw.
            count: How many lines there are, at least about.
            save: Writes the images of a line. Several threads call it.
        """
        self._drawing, self._scale, self._count, self._save = drawing, scale, count, save

    def __call__(self, lines: Iterable[Line], index: Index, stopping: Callable[[], bool]) -> Iterator[Entry]:
        """Draw lines, add them to the index, and yield their entries, in the order of the lines.

        Args:
            lines: The lines after the last one of the index.
            index: The index.
            stopping: Tells whether to stop: what was drawn is written, and the rest is left for another run.
        """
        waiting = deque[tuple[Line, Future[Entry]]]()
        with ThreadPoolExecutor(WRITING, "writing") as threads:
            for line, outcome in self._drawn(lines):
                waiting.append((line, threads.submit(self._entry, line, outcome)))
                while len(waiting) > WRITING or (waiting and waiting[0][1].done()):
                    yield _indexed(index, *waiting.popleft())
                if stopping():
                    break
            while waiting:
                yield _indexed(index, *waiting.popleft())

    def _drawn(self, lines: Iterable[Line]) -> Iterator[tuple[Line, Result | BaseException | None]]:
        """Yield lines, in their order, with their outcomes."""
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        each = max(1, min(MOST_LINES, self._count // (BLOCKS * self._scale.most)))
        data = ray.data.from_arrow_refs(list(_blocks(iter(lines), each)))
        data.context.execution_options.preserve_order = True
        data.context.enable_progress_bars = False
        drawn = data.map_batches(
            Actor,
            fn_constructor_args=(self._drawing,),
            batch_size=min(each, TOGETHER),
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=max(1, self._scale.least), max_size=self._scale.most),
            num_cpus=self._scale.cpus,
            num_gpus=self._scale.gpus,
        )
        for row in drawn.iter_rows():
            outcome = row.pop("outcome")
            yield Line(**row), pickle.loads(outcome)

    def _entry(self, line: Line, outcome: Result | BaseException | None) -> Entry:
        """Write the images of a line, and return its entry."""
        if outcome is None:
            return Entry(line.number, "blank", input=line.digest)
        if isinstance(outcome, BaseException):
            return failed(line, outcome)
        request, values = self._drawing.reader.request(line)
        files = tuple(path.as_posix() for path in self._save(line, request, values, outcome))
        return Entry(line.number, "done", files, tuple(outcome.seeds), input=line.digest)


def _indexed(index: Index, line: Line, entry: "Future[Entry]") -> Entry:
    """Wait until a line's images are written, and add it to the index."""
    index.append(line, entry.result())
    return entry.result()


def _blocks(lines: Iterator[Line], each: int) -> Iterator[Any]:
    """Put lines into Ray's object store, so many in a block; it spills to the disk what does not fit."""
    while block := list(islice(lines, each)):
        rows = [{"number": line.number, "text": line.text, "digest": line.digest} for line in block]
        yield ray.put(pa.Table.from_pylist(rows, schema=ROW))
