"""Stages of small models, for pipelines of made engines."""

from ldmrt.runtime.bundle.stage_of_configs import stage_of_configs
from ldmrt.runtime.bundle.stages import Stage


def plain(channels: int, factor: int, scaling_factor: float, size: int) -> Stage:
    """A plain Stable Diffusion's, whose latents have so many channels and pixels."""
    unet = {"in_channels": channels, "sample_size": size // factor}
    vae = {"block_out_channels": [1] * factor.bit_length(), "latent_channels": channels}
    return stage_of_configs(unet, {**vae, "scaling_factor": scaling_factor}, {})
