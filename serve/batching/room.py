"""Tell how many rows a call of the U-Net has at a size, and whether there is memory for one."""

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.pipeline.batch_size import images_at_once
from ldmrt.runtime.pipeline.loras.loaded import Active
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.request.request import Request

from .lanes import Lane


def rows_per_call(pipeline: Pipeline, size: tuple[int, int], rows: int) -> int:
    """Return how many rows a call may have: what was measured, within the engines' profiles and the free memory.

    Args:
        pipeline: The stage.
        size: Height and width of the images in pixels.
        rows: How many rows a call should have at the model's own size, see `knee`; smaller images have more.
    """
    fitting = images_at_once(
        pipeline.profiles, size, pipeline.stage.space.factor, rows=1, forecast=pipeline.forecast
    )  # fmt: skip
    return max(1, min(fitting, rows * pipeline.stage.size**2 // (size[0] * size[1])))


def check_fits(pipeline: Pipeline, request: Request) -> None:
    """Refuse a request of which not even one row is predicted to fit into memory.

    Raises:
        InvalidRequest: Its images are too large.
    """
    height, width = pipeline.final_size(request)
    if pipeline.forecast is not None and pipeline.forecast.images(height * width, 1) < 1:
        raise InvalidRequest("request", "an image of this size does not fit into memory", found=f"{width}x{height}")


def lane_of(stage: Pipeline, model: str, size: tuple[int, int], rows: int, loras: Active = ()) -> Lane:
    """Return the lane of images of a size, (height, width), in a stage of a model with so many rows a call."""
    return Lane(f"{model}/{stage.stage.name}", size, rows_per_call(stage, size, rows), loras)
