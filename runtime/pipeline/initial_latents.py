"""Make the first latents: of noise, of an image, or of an image and a mask."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ldmrt.runtime.bundle.model_info import ModelInfo
from ldmrt.runtime.errors import InvalidRequest, LdmrtWarning
from ldmrt.runtime.images import reading
from ldmrt.runtime.samplers.loop import Blend
from ldmrt.runtime.samplers.noise import FIRST, IMAGE, MASKED, noise
from ldmrt.runtime.samplers.plan import Latents, Plan
from ldmrt.runtime.tensors import Engine

from .autoencoder.decode import Decoding
from .autoencoder.encode import encode_image
from .request.request import Request

FAR = 4  # times more or fewer pixels than the model's own


@dataclass(frozen=True)
class InitialLatents:
    """Holds the first latents of a request, and the latents that are kept in every row."""

    x: Latents  # unit noise, or what another model left
    size: tuple[int, int]  # height, width in pixels
    init: Latents | None = None  # latents of an image, noised to the plan's first node
    beside: Latents | None = None  # channels that the U-Net sees beside the latents: mask, masked image
    blend: Blend | None = None


def initial_latents(
    request: Request, plan: Plan, engines: Mapping[str, Engine], shape: ModelInfo, how: Decoding, *, extra: int
) -> InitialLatents:
    """Make the first latents of a request: of noise or another model's latents, and of its image and mask if any.

    Args:
        request: The request.
        plan: Its sampler's table.
        engines: Those of the pipeline; the encoder is opened where there is an image.
        shape: The bundle's model.
        how: Whole images or tiles.
        extra: How many channels an inpainting U-Net has more than the latents. With none, the kept part of the image is
            blended in after every row.
    """
    first, *others = [None] if request.image is None else reading.split("image", request.image)
    image = None if first is None else reading.read("image", first)
    own = shape.own if image is None else reading.size_of(image, shape.factor)
    left = request.latents if request.denoising_start is not None else None
    goes_on = left is not None
    if left is not None:
        own = left.shape[2] * shape.factor, left.shape[3] * shape.factor
    size = request.size(own, shape.factor)
    _warn_of_size(size, shape.size)
    latents = (shape.channels, size[0] // shape.factor, size[1] // shape.factor)
    seeds = request.seeds
    x = noise(seeds, FIRST, latents) if request.latents is None else _given(request, latents)
    if extra and (image is None or request.mask_image is None):
        raise InvalidRequest("unet", "this model fills a part of an image", expected="image and mask_image")
    if image is None:
        return InitialLatents(x, size)
    colours = reading.for_each(reading.colors("image", [image, *others], size), len(seeds))
    if request.mask_image is None:
        return InitialLatents(x, size, encode_image(engines, shape, how, colours, seeds, IMAGE))
    masks = reading.masks(reading.split("mask", request.mask_image), size, request.mask_from)
    mask = reading.for_each(masks, len(seeds))
    small = mask[:, :, :: shape.factor, :: shape.factor]
    whole = goes_on or request.strength == 1.0  # the first latents are not made of the image
    init = None if whole and extra else encode_image(engines, shape, how, colours, seeds, IMAGE)
    if extra:
        masked = encode_image(engines, shape, how, np.where(mask < 0.5, colours, np.float32(0.5)), seeds, MASKED)
        return InitialLatents(x, size, init, np.concatenate([small, masked], axis=1))
    alpha, sigma = np.append(plan.alpha, plan.end_alpha), np.append(plan.sigma, 0.0)
    fresh = noise(seeds, FIRST, latents) if goes_on else x

    def blend(row: int, after: Latents) -> Latents:
        kept: Latents = np.float32(alpha[row + 1]) * init + np.float32(sigma[row + 1]) * fresh
        return (1 - small) * kept + small * after

    return InitialLatents(x, size, None if whole else init, blend=blend)


def _warn_of_size(size: tuple[int, int], own: int) -> None:
    """Warn where an image has four times the pixels that the model was trained on, or a quarter.

    Its content repeats itself then, or falls apart.
    """
    share = size[0] * size[1] / own**2
    if not 1 / FAR < share < FAR:
        found = f"{size[1]}x{size[0]} is far from the model's own size, {own}x{own}"
        warnings.warn(f"request: {found}; images may repeat themselves or fall apart", LdmrtWarning, stacklevel=3)


def _given(request: Request, shape: tuple[int, ...]) -> Latents:
    given, expected = np.asarray(request.latents, np.float32), (len(request.seeds), *shape)
    if given.shape != expected:
        raise InvalidRequest("request", "wrong shape of latents", expected=expected, found=given.shape)
    return given
