"""Measure how many rows a call of a model's U-Net should have."""

from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.serve.batching.knee import knee, measure, timed
from ldmrt.serve.batching.room import rows_per_call

MOST_ROWS = 32  # that are tried


def rows_of(pipeline: Pipeline) -> int:
    """Measure how many rows a call of a model's U-Net should have at its own size.

    Networks that take turns in memory, or have no axis of rows, get one request at a time.
    """
    network = pipeline.engines[pipeline.stage.network]
    by_row = all(spec.shape and isinstance(spec.shape[0], str) for spec in network.inputs)
    if pipeline.engines.take_turns or not by_row:
        return 1
    side = pipeline.stage.size
    most = rows_per_call(pipeline, (side, side), MOST_ROWS)
    return knee(measure(timed(network, side, pipeline.stage.space.factor), most))
