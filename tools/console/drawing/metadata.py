"""The parameters that an image's metadata hold: those of its request, and those that follow from the model."""

from collections.abc import Mapping

import ldmrt
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.pipeline.call import Result
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.registry import everyday_name

from .images import parameters


def ends_of(pipeline: Pipeline, request: Request) -> tuple[Pipeline, Pipeline]:
    """Return the first and the last stage that a request runs."""
    by_name = {each.stage.name: each for each in pipeline.stages}
    first, last = request.from_stage or "", request.until_stage or ""
    return by_name.get(first, pipeline), by_name.get(last, pipeline.stages[-1])


def of_request(
    bundle: str, first: Pipeline, options: Mapping[str, object], controls: Mapping[str, tuple[object, float]]
) -> JsonObject:
    """Return the parameters that all images of a request share.

    Args:
        bundle: The bundle's name.
        first: The stage that the request begins at.
        options: The request's values by their short words, files by their paths.
        controls: The images of each control, and their scale.
    """
    shared = {"ldmrt": ldmrt.__version__, "bundle": bundle} | parameters(options, controls)
    guidance = first.stage.guidance_scale if shared.get("guidance") is None else shared["guidance"]
    return shared | {"scheduler": shared["scheduler"] or everyday_name(first.scheduler), "guidance": guidance}


def of_result(pipeline: Pipeline, last: Pipeline, result: Result) -> JsonObject:
    """Return the parameters that follow from a result: its size, and the tiles that it was decoded in."""
    factor = last.stage.space.factor
    cells = pipeline.decoding.cells(factor, result.latents.shape[2:])
    tiles = {"tile": cells * factor, "tile_passes": pipeline.decoding.passes} if cells else {}
    height, width = (side * factor for side in result.latents.shape[2:])  # those of a region, not of its whole image
    return tiles | {"height": height, "width": width}
