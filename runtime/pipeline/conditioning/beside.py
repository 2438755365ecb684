"""Make the channels that a network sees beside the state, of a request's image and mask."""

from collections.abc import Callable, Mapping

import numpy as np

from ldmrt.runtime.bundle.stages import Source
from ldmrt.runtime.images.resizing import resize
from ldmrt.runtime.pipeline.autoencoder.encode import encode_image, encode_mean
from ldmrt.runtime.pipeline.request.images import small_mask
from ldmrt.runtime.samplers.noise.counter import IMAGE, MASKED, NOISED, of_stage
from ldmrt.runtime.samplers.plan import Latents
from ldmrt.runtime.samplers.schedule import signal_and_noise

from .context import Context


def _mask(context: Context, source: Source) -> Latents:
    return small_mask(context.mask, context.stage.space.factor)


def _mask_pixels(context: Context, source: Source) -> Latents:
    """Return the mask, where it is half or more, with the pixels of a latent as channels: by rows, then by columns."""
    mask, factor = np.where(context.mask < 0.5, np.float32(0), np.float32(1))[:, 0], context.stage.space.factor
    images, height, width = mask.shape
    pixels = mask.reshape(images, height // factor, factor, width // factor, factor)
    channels: Latents = pixels.transpose(0, 2, 4, 1, 3).reshape(images, factor**2, height // factor, width // factor)
    return channels


def _masked_image(context: Context, source: Source) -> Latents:
    masked = np.where(context.mask < 0.5, context.colours, np.float32(0.5))
    stream = of_stage(MASKED, context.stage.number)
    return encode_image(context.engines, context.stage.space, context.how, masked, context.noise, stream)


def _control_image(context: Context, source: Source) -> Latents:
    stream = of_stage(IMAGE, context.stage.number)
    return encode_image(context.engines, context.stage.space, context.how, context.colours, context.noise, stream)


def _image_latents(context: Context, source: Source) -> Latents:
    return encode_mean(context.engines, context.stage.space, context.how, context.colours)


def _context_image(context: Context, source: Source) -> Latents:
    space = context.stage.space
    mean = encode_mean(context.engines, space, context.how, context.colours)
    latents: Latents = (mean - np.float32(space.shift_factor)) * np.float32(space.scaling_factor)
    return latents


def _small_image(context: Context, source: Source) -> Latents:
    pixels: Latents = context.colours * 2 - 1
    return pixels


def _noised_image(context: Context, source: Source) -> Latents:
    return _noise_of_level(context, source, _small_image(context, source))


def _enlarged_image(context: Context, source: Source) -> Latents:
    pixels, times = _small_image(context, source), int(source.setting("times"))
    height, width = pixels.shape[2:]
    return _noise_of_level(context, source, resize(pixels, (times * height, times * width), "bilinear"))


def _noise_of_level(context: Context, source: Source, pixels: Latents) -> Latents:
    """Add noise of the request's level to an image (Ho et al. 2021, arXiv:2106.15282, section 4.1)."""
    alpha, sigma = signal_and_noise(context.schedulers[str(source.setting("scheduler"))], context.noise_level)
    noised: Latents = np.float32(alpha) * pixels
    stream = of_stage(NOISED, context.stage.number)
    noised += np.float32(sigma) * context.noise(stream, pixels.shape[1:])
    return noised


BESIDE: Mapping[str, Callable[[Context, Source], Latents]] = {
    "mask": _mask,
    "mask_pixels": _mask_pixels,
    "masked_image": _masked_image,
    "control_image": _control_image,
    "image_latents": _image_latents,
    "context_image": _context_image,
    "small_image": _small_image,
    "noised_image": _noised_image,
    "enlarged_image": _enlarged_image,
}
