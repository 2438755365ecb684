"""The reference pipeline: the runtime's own loop around the PyTorch networks."""

from ldmrt.model import Checkpoint
from ldmrt.runtime.pipeline import Pipeline
from ldmrt.runtime.tokenizer import Tokenizer

from .components import COMPONENTS


def torch_pipeline(checkpoint: Checkpoint) -> Pipeline:
    """A pipeline like `ldmrt.runtime.open` gives, whose engines are PyTorch."""
    return Pipeline(
        {name: component.engine(checkpoint) for name, component in COMPONENTS.items()},
        Tokenizer(checkpoint.tokenizer),
        checkpoint.scheduler,
        checkpoint.vae.config.latent_channels,
        checkpoint.vae.config.factor,
        checkpoint.vae.config.scaling_factor,
        (checkpoint.unet.config.sample_size or 64) * checkpoint.vae.config.factor,
    )
