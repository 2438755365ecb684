"""Draw a file of whole requests, one in each line, as `ldmrt generate` draws one of its options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import ldmrt
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.serve.batch.lines import check_file, read_lines
from ldmrt.serve.batch.requests import Reader
from ldmrt.tools.console.terminal.screen import Screen

from .batch_images import described
from .image_paths import depth_of, numbered
from .images import grid, save_depth, save_image
from .making import Making
from .rows import in_parts, nearly_square

MOST = 1024  # requests of a file, and images of them all, which the grid shows


@dataclass(frozen=True, eq=False)
class WholeRequest:
    """Holds the request of a line.

    Attributes:
        line: Where it stands, for messages.
        request: The request.
        values: Its values by short words, as they were given.
    """

    line: str
    request: Request
    values: JsonObject


def check_alone(path: Path, others: Mapping[str, object]) -> None:
    """Refuse options that no line of a file of whole requests can have.

    Args:
        path: The file.
        others: The values of such options by their names; those that are not given are false.

    Raises:
        LdmrtError: One of them is given.
    """
    for name in (name for name, value in others.items() if value):
        problem = f"{name} cannot be combined with {path}, which holds whole requests"
        raise LdmrtError("generate", problem, expected="only one of them")


def read_requests(path: Path, options: JsonObject) -> list[WholeRequest]:
    """Return the requests of a .jsonl file, as `ldmrt batch` reads them.

    Args:
        path: The file.
        options: What a line has that does not state it, by short words.

    Raises:
        LdmrtError: The file cannot be read, or has more than `MOST` lines or images, or a line is invalid; it is named.
    """
    reader, found = Reader(True, options, Path.cwd()), list[WholeRequest]()
    if (count := check_file(path)) > MOST:
        expected, hint = f"at most {MOST} lines", f"ldmrt batch BUNDLE {path} FOLDER"
        raise LdmrtError("generate", f"{path} is too long", expected=expected, found=count, hint=hint)
    for line in read_lines(path, count):
        if line.is_blank:
            continue
        place = f"line {line.number} of {path}"
        try:
            found.append(WholeRequest(place, *reader.request(line)))
        except LdmrtError as error:
            raise error.about(place) from None
    if (images := images_of(found)) > MOST:
        expected, hint = f"at most {MOST} images", f"ldmrt batch BUNDLE {path} FOLDER"
        raise LdmrtError("generate", f"{path} asks for too many images", expected=expected, found=images, hint=hint)
    return found


def images_of(asked: Sequence[WholeRequest]) -> int:
    """Count the images that requests ask for."""
    return sum(each.request.total_images for each in asked)


def check_requests(pipeline: Pipeline, asked: Sequence[WholeRequest]) -> None:
    """Refuse requests that a pipeline cannot draw; no network is opened.

    Raises:
        LdmrtError: The first one that it cannot draw; its line is named.
    """
    for each in asked:
        try:
            pipeline.rows(each.request)
        except LdmrtError as error:  # noqa: PERF203 - it ends the loop
            raise error.about(each.line) from None


def draw_requests(
    pipeline: Pipeline,
    making: Making,
    asked: Sequence[WholeRequest],
    out: Path,
    batch: int | None,
    columns: int | None,
    screen: Screen | None,
) -> list[Path]:
    """Draw requests: a numbered file for each image, and a grid where several have one size; one image is OUT itself.

    Args:
        pipeline: Draws.
        making: What records the run.
        asked: The requests.
        out: The file of the grid.
        batch: Images of a batch; by default as many as fit.
        columns: Of the grid; nearly square by default.
        screen: Where images are shown when they are drawn.

    Returns:
        The files.
    """
    at_once = [batch or pipeline.images_at_once(each.request) for each in asked]
    parts = [pipeline.parts(each.request, most) for each, most in zip(asked, at_once, strict=True)]
    counts = [-(-each.request.total_images // most) for each, most in zip(asked, at_once, strict=True)]
    results = in_parts(pipeline.draw(chain.from_iterable(parts)), sum(counts), screen)
    total = images_of(asked)
    images, alike, written = list[NDArray[np.uint8]](), list[tuple[Request, tuple[Path, int] | None]](), list[Path]()
    drawn = 0
    for each, count in zip(asked, counts, strict=True):
        several = (next(results) for _ in range(count))
        alone = pipeline.parts(each.request, 1)
        for image, depth, notes in described(making, pipeline, each.request, each.values, several):
            path = out if total == 1 else numbered(out, drawn)
            save_image(path, image, notes)
            written.append(path)
            drawn += 1
            if depth is not None:
                save_depth(depth_of(path), depth)
                written.append(depth_of(path))
            images.append(image)
            alike.append((next(alone), None))
    if total == 1 or len({image.shape for image in images}) > 1:
        return written
    columns = columns or nearly_square(total)
    texts = {"prompts": [one.prompts[0] for one, _ in alike], "seeds": [one.seeds[0] for one, _ in alike]}
    facts = {"ldmrt": ldmrt.__version__, "bundle": making.name, **texts}
    save_image(out, grid(np.stack(images), columns), making.grid_notes(facts, alike, columns))
    return [out, *written]
