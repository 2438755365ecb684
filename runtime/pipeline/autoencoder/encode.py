"""Encode images to latents: whole or in tiles, one at a time."""

from collections.abc import Mapping

import numpy as np

from ldmrt.runtime.bundle.graphs import BACK, ENCODER, TILE
from ldmrt.runtime.bundle.model_info import ModelInfo
from ldmrt.runtime.errors import LdmrtError, NotFinite
from ldmrt.runtime.samplers.noise import noise
from ldmrt.runtime.samplers.plan import Latents
from ldmrt.runtime.tensors import Engine

from .decode import Decoding
from .tiling import tiled, tiled_as_whole


def encode_image(
    engines: Mapping[str, Engine], shape: ModelInfo, how: Decoding, colours: Latents, seeds: list[int], stream: int
) -> Latents:
    """Encode images to latents, sampled from the autoencoder's Gaussian with the seeds' noise.

    Args:
        engines: Those of the pipeline.
        shape: The bundle's model.
        how: Whole or in tiles.
        colours: (N, 3, H, W), values in [0, 1].
        seeds: One for each image.
        stream: The stream of the seeds' noise.

    Returns:
        (N, C, h, w), as the U-Net sees them.

    Raises:
        LdmrtError: The bundle has no encoder.
        NotFinite: The latents are not finite.
    """
    if ENCODER not in engines:
        raise LdmrtError(ENCODER, "this bundle cannot take an image", hint="export again, with vae_encoder")
    parameters = [_parameters(engines, shape, how, one[None] * 2 - 1) for one in colours]
    mean, log_variance = np.split(np.concatenate(parameters).astype(np.float32, copy=False), 2, axis=1)
    drawn = noise(seeds, stream, mean.shape[1:])
    latents: Latents = (mean + np.exp(np.clip(log_variance, -30, 20) / 2) * drawn) * np.float32(shape.scaling_factor)
    if not np.isfinite(latents).all():
        raise NotFinite(ENCODER, "the latents are not finite", hint="ldmrt verify BUNDLE --against CHECKPOINT")
    return latents


def _parameters(engines: Mapping[str, Engine], shape: ModelInfo, how: Decoding, one: Latents) -> Latents:
    """Return mean and log-variance (1, 2C, h, w) of an image (1, 3, H, W), values in [-1, 1]."""
    cells = how.cells(shape.factor, tuple(side // shape.factor for side in one.shape[2:]))
    if cells is None:
        return engines[ENCODER](sample=one)["latent_parameters"]
    factors = (shape.factor, 1)
    with np.errstate(invalid="ignore"):  # the caller refuses latents that are not finite
        if how.passes == 1 or ENCODER + TILE not in engines:
            return tiled(engines[ENCODER], one, cells, ("sample", "latent_parameters"), factors)
        features = tiled_as_whole(engines[ENCODER + TILE], one, cells, ("sample", "features"), factors, how.passes)
        return engines[ENCODER + BACK](features=features)["latent_parameters"]  # attention sees the whole
