"""The reference pipeline: the runtime's own loop around the PyTorch networks."""

from ldmrt.model.checkpoint.checkpoint import Checkpoint
from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from .table import components


def torch_pipeline(checkpoint: Checkpoint) -> Pipeline:
    """Return the pipeline of `ldmrt.runtime.open`, with the PyTorch networks as its engines."""
    parts = components(checkpoint)
    return Pipeline(
        LazyEngines({name: component.engine for name, component in parts.items()}),
        {name: Tokenizer(files) for name, files in checkpoint.tokenizers.items()},
        checkpoint.scheduler,
        checkpoint.stage,
        schedulers=checkpoint.noisers,
    )
