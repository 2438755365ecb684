"""LDM3D draws an image and its depth, both in the latents of one autoencoder (Stan et al. 2023, arXiv:2305.10853)."""

from dataclasses import replace

from ldmrt.runtime.bundle.stages import Stage
from ldmrt.runtime.files.reading import JsonObject


def ldm3d(stage: Stage, index: JsonObject) -> Stage:
    """Let the decoder give six channels: red, green, blue, and a depth of 16 bits in the last two."""
    return replace(stage, depth=True)
