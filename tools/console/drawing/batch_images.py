"""Write the images of a line of a file of prompts, with the metadata that `ldmrt generate` gives them."""

from pathlib import Path

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
    first, last = ends_of(pipeline, request)
    words = {word: getattr(request, name) for word, name in WORDS.items() if name not in ("prompt", "controls")}
    words |= {word: values[word] for word in BY_STAGE if isinstance(values.get(word), dict)}
    controls = {name: with_scale(control) for name, control in request.controls.items()}
    shared = of_request(making.name, first, words, controls) | of_result(pipeline, last, result)
    files, alone = list[Path](), pipeline.parts(request, 1)
    for number, (image, seed) in enumerate(zip(result.pixels, result.seeds, strict=True)):
        files.append(image_path(line.number, number, len(result.seeds)))
        prompt = request.prompts[number]
        make_folder(out, files[-1])
        own = {"variation_seed": request.variation_seeds[number]} if request.variation_seeds else {}
        facts = {**shared, **own, "prompt": prompt, "seed": seed}
        save_image(out / files[-1], image, making.notes(facts, next(alone), image))
        if result.depth is not None:
            save_depth(depth_of(out / files[-1]), result.depth[number])
    return files
