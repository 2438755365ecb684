"""Make images row by row, with progress, and save what each row predicts."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.pipeline.call import ImagePipeline, Result
from ldmrt.runtime.pipeline.request.images import pasted
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.plan import Latents
from ldmrt.tools.console.drawing.image_paths import steps_of
from ldmrt.tools.console.drawing.images import grid, save_image
from ldmrt.tools.console.progress import watched
from ldmrt.tools.console.terminal.screen import Screen

STRIP = 10  # most rows in the strip of the denoising


Previews = list[tuple[str, Latents]]  # the stage of each row, and the clean latents that it predicts


def in_rows(
    pipeline: ImagePipeline, request: Request, rows: int, previews: Previews | None, screen: Screen | None = None
) -> Result:
    """Make images and show progress by rows; `previews` collects the predicted clean latents of each.

    On a `screen` they are shown decoded, and the images at last; the latter alone where a safety checker may blacken.
    """
    begin, x, stage, row = time.perf_counter(), None, None, "row {} of {}".format
    states, shown = pipeline.steps(request), None if pipeline.blackens else screen
    for state in states if shown is not None else watched(states, rows, lambda s: row(s.row + 1, s.rows)):
        x, stage = state.x, state.stage
        if previews is not None:
            previews.append((stage, state.x0))
        if shown is not None:
            shown.show(sheet(pipeline.preview(state.x0, stage)), row(state.row + 1, state.rows))
    sampled = time.perf_counter()
    assert x is not None
    images = pasted(request, pipeline.decode(x, stage))
    seconds = {"latents": sampled - begin, "decode": time.perf_counter() - sampled}
    result = pipeline.checked(Result(images, x, request.seeds, seconds))
    if screen is not None:
        screen.show(sheet(result.pixels), row(rows, rows))
    return result


def in_parts(results: Iterator[Result], parts: int, screen: Screen | None) -> Iterator[Result]:
    """Yield the results of a request's parts and show how many are done; on a `screen` their images are shown."""
    if screen is None:
        yield from watched(results, parts, lambda result: f"seed {result.seeds[-1]}")
        return
    for number, result in enumerate(results, start=1):
        screen.show(sheet(result.pixels), f"{number} of {parts}, seed {result.seeds[-1]}")
        yield result


def sheet(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Arrange images (N, H, W, 3) in a grid that is nearly square."""
    return grid(images, nearly_square(len(images)))


def nearly_square(count: int) -> int:
    """Return the columns of a grid of so many images that is nearly square."""
    return math.isqrt(count - 1) + 1


def save_rows(pipeline: ImagePipeline, previews: Previews, out: Path, flags: Sequence[bool] | None) -> list[Path]:
    """Save the predicted clean image of each row in a folder beside OUT, and a strip with a line per image.

    Those of an image that was flagged are black where the image is.
    """
    decoded = [pipeline.preview(x0, stage) for stage, x0 in previews]
    if flags is not None and pipeline.blackens:
        for images in decoded:
            images[np.array(flags)] = 0
    folder, strip = steps_of(out)
    folder.mkdir(exist_ok=True)
    written = []
    for row, images in enumerate(decoded):
        written.append(folder / f"{row:03d}{out.suffix}")
        save_image(written[-1], grid(images, len(images)))
    shown = np.unique(np.linspace(0, len(decoded) - 1, STRIP).round().astype(int))
    height, width = max(images.shape[1:3] for images in decoded)
    decoded = [
        images[:, np.arange(height) * images.shape[1] // height][:, :, np.arange(width) * images.shape[2] // width]
        for images in decoded  # an earlier stage's, or pass's, are smaller
    ]
    cells = [decoded[row][i] for i in range(len(decoded[0])) for row in shown]
    save_image(strip, grid(np.stack(cells), len(shown)))
    return [*written, strip]
