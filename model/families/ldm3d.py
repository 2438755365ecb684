"""LDM3D draws an image and its depth, both in the latents of one autoencoder (Stan et al. 2023, arXiv:2305.10853)."""

from dataclasses import replace

from ldmrt.runtime.bundle.stages import Stage
from ldmrt.runtime.files.reading import JsonObject


def ldm3d(stage: Stage, index: JsonObject, vae: JsonObject) -> Stage:
    """Let the decoder give a depth beside the colours: one channel, or three of which the last two are its 16 bits."""
    return replace(stage, depth=1 if vae.get("out_channels") == 4 else 3)
