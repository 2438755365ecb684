"""Encode images to latents: whole or in tiles, one at a time."""

from collections.abc import Mapping

import numpy as np

from ldmrt.runtime.bundle.graphs import BACK, ENCODER, TILE
from ldmrt.runtime.bundle.stages import KL, PIXELS, Space
from ldmrt.runtime.errors import LdmrtError, NotFinite
from ldmrt.runtime.samplers.noise.sources import NoiseSource
from ldmrt.runtime.samplers.plan import Latents
from ldmrt.runtime.tensors import Engine

from .decode import Decoding
from .tiling import tiled, tiled_as_whole


def encode_image(
    engines: Mapping[str, Engine], space: Space, how: Decoding, colours: Latents, noise: NoiseSource, stream: int
) -> Latents:
    """Encode images to latents, sampled from the autoencoder's Gaussian with noise.

    An autoencoder with a codebook, or a tiny one, gives no Gaussian but latents. Pixels in [-1, 1] are their own
    latents.

    Args:
        engines: Those of the pipeline.
        space: That of the latents.
        how: Whole or in tiles.
        colours: (N, 3, H, W), values in [0, 1].
        noise: Draws for every image.
        stream: The stream of that noise.

    Returns:
        (N, C, h, w), as the U-Net sees them.

    Raises:
        LdmrtError: The bundle has no encoder.
        NotFinite: The latents are not finite.
    """
    mean, log_variance = _gaussian(engines, space, how, colours)
    if log_variance is not None:
        drawn = noise(stream, mean.shape[1:])
        mean = mean + np.exp(np.clip(log_variance, -30, 20) / 2) * drawn
    latents: Latents = (mean - np.float32(space.shift_factor)) * np.float32(space.scaling_factor)
    return _finite(latents)


def encode_mean(engines: Mapping[str, Engine], space: Space, how: Decoding, colours: Latents) -> Latents:
    """Encode images to the mean of the autoencoder's Gaussian, not scaled, as a network takes them beside its latents.

    Args:
        engines: Those of the pipeline.
        space: That of the latents.
        how: Whole or in tiles.
        colours: (N, 3, H, W), values in [0, 1].

    Returns:
        (N, C, h, w), float32.

    Raises:
        LdmrtError: The bundle has no encoder.
        NotFinite: The latents are not finite.
    """
    return _finite(_gaussian(engines, space, how, colours)[0])


def _gaussian(
    engines: Mapping[str, Engine], space: Space, how: Decoding, colours: Latents
) -> tuple[Latents, Latents | None]:
    """Return mean and log-variance of images, (N, C, h, w) both; no variance where the codec gives none."""
    if space.codec == PIXELS:
        return colours if space.least == 0 else colours * 2 - 1, None
    if ENCODER not in engines:
        raise LdmrtError(ENCODER, "this bundle cannot take an image", hint="export again, with vae_encoder")
    parameters = [_parameters(engines, space, how, one[None] * 2 - 1) for one in colours]
    encoded = np.concatenate(parameters).astype(np.float32, copy=False)
    if space.codec != KL:
        return encoded, None
    mean, log_variance = np.split(encoded, 2, axis=1)
    return mean, log_variance


def _finite(latents: Latents) -> Latents:
    """Return latents; raise `NotFinite` where they are not."""
    if not np.isfinite(latents).all():
        raise NotFinite(ENCODER, "the latents are not finite", hint="ldmrt verify BUNDLE --against CHECKPOINT")
    return latents


def _parameters(engines: Mapping[str, Engine], space: Space, how: Decoding, one: Latents) -> Latents:
    """Return mean and log-variance (1, 2C, h, w) of an image (1, 3, H, W), values in [-1, 1]."""
    cells = how.cells(space.factor, tuple(side // space.factor for side in one.shape[2:]))
    if cells is None:
        return engines[ENCODER](sample=one)["latent_parameters"]
    factors = (space.factor, 1)
    with np.errstate(invalid="ignore"):  # the caller refuses latents that are not finite
        if how.passes == 1 or ENCODER + TILE not in engines:
            return tiled(engines[ENCODER], one, cells, ("sample", "latent_parameters"), factors)
        features = tiled_as_whole(engines[ENCODER + TILE], one, cells, ("sample", "features"), factors, how.passes)
        return engines[ENCODER + BACK](features=features)["latent_parameters"]  # attention sees the whole
