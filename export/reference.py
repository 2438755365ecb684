"""The reference pipeline: the runtime's own loop around the PyTorch networks."""

from ldmrt.model import Checkpoint
from ldmrt.runtime.bundle import Shape
from ldmrt.runtime.engines import Engines
from ldmrt.runtime.pipeline import Pipeline
from ldmrt.runtime.tokenizer import Tokenizer

from .components import components


def torch_pipeline(checkpoint: Checkpoint) -> Pipeline:
    """A pipeline like `ldmrt.runtime.open` gives, whose engines are PyTorch."""
    vae, unet = checkpoint.vae.config, checkpoint.unet.config
    return Pipeline(
        Engines({name: component.engine for name, component in components(checkpoint).items()}),
        {name: Tokenizer(files) for name, files in checkpoint.tokenizers.items()},
        checkpoint.scheduler,
        Shape(
            vae.latent_channels,
            vae.factor,
            vae.scaling_factor,
            (unet.sample_size or 64) * vae.factor,
            zeros=bool(checkpoint.index.get("force_zeros_for_empty_prompt", False)),
            scored=bool(checkpoint.index.get("requires_aesthetics_score", False)),
        ),
    )
