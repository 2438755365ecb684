"""Latent diffusion's super-resolution enlarges an image without a prompt (Rombach et al. 2022, section 4.4)."""

from dataclasses import replace

from ldmrt.runtime.bundle.stages import SAMPLE, Source, Stage
from ldmrt.runtime.files.reading import JsonObject


def super_resolution(stage: Stage, index: JsonObject, vae: JsonObject) -> Stage:
    """Give the U-Net the small image beside its latents, which diffusers' pipeline does not scale.

    That pipeline lets schedulers such as Euler's divide the image by sqrt(sigma^2 + 1) together with the latents. Here
    the image stays as it is, as the network was trained.
    """
    reads = {**stage.reads, SAMPLE: (Source("state"), Source("small_image"))}
    return replace(stage, reads=reads, space=replace(stage.space, scaling_factor=1.0))
