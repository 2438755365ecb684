"""The reference pipeline: the runtime's own loop around the PyTorch networks."""

from functools import partial

from ldmrt.model import Checkpoint
from ldmrt.runtime.bundle import Shape
from ldmrt.runtime.engines import Engines
from ldmrt.runtime.pipeline import Pipeline
from ldmrt.runtime.tokenizer import Tokenizer

from .components import COMPONENTS


def torch_pipeline(checkpoint: Checkpoint) -> Pipeline:
    """A pipeline like `ldmrt.runtime.open` gives, whose engines are PyTorch."""
    vae, unet = checkpoint.vae.config, checkpoint.unet.config
    return Pipeline(
        Engines({name: partial(component.engine, checkpoint) for name, component in COMPONENTS.items()}),
        {"tokenizer": Tokenizer(checkpoint.tokenizer)},
        checkpoint.scheduler,
        Shape(vae.latent_channels, vae.factor, vae.scaling_factor, (unet.sample_size or 64) * vae.factor),
    )
