"""Describe and write the images of a line of a file of prompts, with the metadata that `ldmrt generate` gives them."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.pipeline.call import Result
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.request.checks import with_scale
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.pipeline.request.short_words import BY_STAGE
from ldmrt.serve.batch.folder import image_path, make_folder
from ldmrt.serve.batch.lines import Line
from ldmrt.serve.batch.requests import WORDS

from .image_paths import depth_of
from .images import save_depth, save_image
from .making import Making
from .metadata import ends_of, of_request, of_result


def save_line(
    out: Path, making: Making, pipeline: Pipeline, line: Line, request: Request, values: JsonObject, result: Result
) -> list[Path]:
    """Write the images of a line, and return their paths in the folder of the run.

    Args:
        out: The folder of the run.
        making: What records the run.
        pipeline: What has drawn.
        line: The line.
        request: The line's request.
        values: Its values by short words, as they were given.
        result: Its images.
    """
    files = list[Path]()
    for number, (image, depth, notes) in enumerate(described(making, pipeline, request, values, [result])):
        files.append(image_path(line.number, number, len(result.seeds)))
        make_folder(out, files[-1])
        save_image(out / files[-1], image, notes)
        if depth is not None:
            save_depth(depth_of(out / files[-1]), depth)
    return files


def described(
    making: Making, pipeline: Pipeline, request: Request, values: JsonObject, results: Iterable[Result]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint16] | None, dict[str, str]]]:
    """Yield the images of a line with their depths and the texts for their files.

    Args:
        making: What records the run.
        pipeline: What draws.
        request: The line's request.
        values: Its values by short words, as they were given.
        results: All its images, in one part or in several.
    """
    first, last = ends_of(pipeline, request)
    words = {word: getattr(request, name) for word, name in WORDS.items() if name not in ("prompt", "controls")}
    words |= {word: values[word] for word in BY_STAGE if isinstance(values.get(word), dict)}
    controls = {name: with_scale(control) for name, control in request.controls.items()}
    shared, alone, number = of_request(making.name, first, words, controls), pipeline.parts(request, 1), 0
    for result in results:
        own = shared | of_result(pipeline, last, result)
        for place, (image, seed) in enumerate(zip(result.pixels, result.seeds, strict=True)):
            varied = {"variation_seed": request.variation_seeds[number]} if request.variation_seeds else {}
            facts = {**own, **varied, "prompt": request.prompts[number], "seed": seed}
            depth = None if result.depth is None else result.depth[place]
            yield image, depth, making.notes(facts, next(alone), image)
            number += 1
