"""Lines are drawn many at a time and indexed in their order, and a run can be stopped and fail at any line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import Request
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.pipeline.call import Result
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.serve.batch.index import INDEX, Entry, Index
from ldmrt.serve.batch.lines import Line
from ldmrt.serve.batch.requests import Reader
from ldmrt.serve.batch.run import AT_ONCE, Run, service_of
from ldmrt.serve.jobs.service import Service
from ldmrt.serve.models.models import fixed

OPTIONS = {"steps": 3, "seed": 5}


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Iterator[Pipeline]:
    with open_pipeline(bundle) as opened:
        yield opened


class Drawing:
    """Runs lines in a folder, and keeps what was drawn in memory."""

    def __init__(self, pipeline: Pipeline, out: Path, *, window: int = 4) -> None:
        self.pipeline, self.out, self.window = pipeline, out, window
        self.pixels: dict[int, Any] = {}
        self.read = 0
        self.stop_after: int | None = None
        self.full_at: int | None = None
        self.index = Index(out, reader := Reader(True, OPTIONS))
        self.reader = reader

    def save(self, line: Line, request: Request, values: JsonObject, result: Result) -> list[Path]:
        if line.number == self.full_at:
            raise OSError(28, "No space left on device")
        assert line.number not in self.pixels
        self.pixels[line.number] = result.pixels
        return [Path(f"{line.number}-{image}.png") for image in range(len(result.seeds))]

    def counted(self, texts: list[str]) -> Iterator[Line]:
        for self.read, text in enumerate(texts, 1):
            if self.read > self.index.last:
                yield Line(self.read, text, f"digest {self.read}")

    def __call__(self, texts: list[str]) -> Iterator[Entry]:
        service = Service(fixed({"tiny": self.pipeline}, {"tiny": 8}), running=2, waiting=self.window)
        run = Run(service, self.reader, self.save, window=self.window)
        with self.index:
            stopping = lambda: self.stop_after is not None and self.index.last >= self.stop_after  # noqa: E731
            for entry in run(self.counted(texts), self.index, stopping):
                assert self.read <= entry.line - 1 + self.window
                yield entry


@pytest.fixture
def drawing(pipeline: Pipeline, tmp_path: Path) -> Drawing:
    return Drawing(pipeline, tmp_path)


def prompts(lines: int, **settings: Any) -> list[str]:
    return [json.dumps({"prompt": f"a penguin, number {number}", **settings}) for number in range(lines)]


def test_lines_are_in_their_order_and_read_no_further_than_the_window(drawing: Drawing, pipeline: Pipeline) -> None:
    """The first takes longest; images are those that the pipeline makes of each request alone."""
    texts = [*prompts(1, steps=40), *prompts(9), *prompts(2, count=2, width=32)]
    entries = list(drawing(texts))
    assert [(entry.line, entry.status) for entry in entries] == [(number, "done") for number in range(1, 13)]
    for line, text in enumerate(texts, 1):
        request, _ = drawing.reader.request(Line(line, text, ""))
        np.testing.assert_array_equal(drawing.pixels[line], pipeline.generate(request).pixels)
    assert entries[11].files == ("12-0.png", "12-1.png")
    assert [entries[line - 1].seeds for line in (1, 2, 12)] == [(5,), (6,), (16, 17)]


def test_lines_that_fail_are_alone(drawing: Drawing) -> None:
    """Words that are refused, a sampler that is not there, a size that fails in its first row: the others are right."""
    good = prompts(1)[0]
    bad = [{"prompt": "a", "stepz": 3}, {"prompt": "a", "scheduler": "heron"}, {"prompt": "a", "width": 15}]
    entries = list(drawing([good, *map(json.dumps, bad), "", good]))
    assert [entry.status for entry in entries] == ["done", "failed", "failed", "failed", "blank", "done"]
    errors = [str(entry.error) for entry in entries[1:4]]
    assert "did you mean 'steps'?" in errors[0]
    assert "unknown scheduler 'heron', did you mean 'heun'?" in errors[1]
    assert "invalid width; expected a multiple of 2; found 15" in errors[2]
    assert drawing.index.counts == {"done": 2, "failed": 3, "blank": 1, "images": 2}


def test_a_run_that_is_stopped_goes_on(drawing: Drawing, pipeline: Pipeline) -> None:
    """What was running when it was stopped is in the index too; each line is drawn by one of both runs."""
    texts, drawing.stop_after = prompts(12), 3
    first = [entry.line for entry in drawing(texts)]
    assert first == list(range(1, len(first) + 1))
    assert 3 <= len(first) < 3 + drawing.window
    rest = Drawing(pipeline, drawing.out)
    rest.index.resume(iter([Line(n, text, f"digest {n}") for n, text in enumerate(texts, 1)]), Path("prompts"))
    assert [entry.line for entry in rest(texts)] == list(range(len(first) + 1, 13))
    entries = [json.loads(text) for text in (drawing.out / INDEX).read_text().splitlines()]
    assert [(entry["line"], entry["seeds"]) for entry in entries] == [(n, [4 + n]) for n in range(1, 13)]


def test_a_run_that_is_stopped_at_once_draws_nothing(drawing: Drawing) -> None:
    drawing.stop_after = 0
    assert list(drawing(prompts(3))) == []
    assert (drawing.pixels, drawing.read) == ({}, 0)


def test_a_full_disk_ends_the_run(drawing: Drawing) -> None:
    """The lines before are in the index; it is no line's fault."""
    drawing.full_at = 3
    with pytest.raises(OSError, match="No space left"):
        list(drawing(prompts(6)))
    assert (drawing.index.last, drawing.index.counts["failed"]) == (2, 0)


def test_what_runs_at_once_follows_from_what_fits(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than fill a call; two rows of guidance for each image."""
    made = []
    monkeypatch.setattr("ldmrt.serve.batch.run.Service", lambda models, **limits: made.append((models, limits)))
    for images, count in ((None, 1), (4, 1), (4, 2), (1, 8)):
        _, window = service_of("tiny", pipeline, Request("", num_images_per_prompt=count), images)
        assert made[-1][1]["waiting"] == window == 2 * made[-1][1]["running"]
    assert [models.model("tiny").rows for models, _ in made[1:]] == [8, 8, 2]
    assert [limits["running"] for _, limits in made] == [AT_ONCE, 5, 3, 2]


def test_networks_that_take_turns_draw_one_line_at_a_time(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr("ldmrt.serve.batch.run.Service", lambda models, **limits: made.append(limits))
    with open_pipeline(bundle, low_memory=True) as pipeline:
        service_of("tiny", pipeline, Request(""), None)
    assert made == [{"running": 1, "waiting": 2}]
