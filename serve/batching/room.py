"""Tell how many rows a call of the U-Net has at a size."""

from ldmrt.runtime.pipeline.batch_size import images_at_once
from ldmrt.runtime.pipeline.pipeline import Pipeline


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
