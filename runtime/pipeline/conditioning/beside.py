"""Make the channels that a network sees beside the state, of a request's image and mask."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ldmrt.runtime.bundle.stages import Source, Stage
from ldmrt.runtime.errors import BundleError, InvalidRequest
from ldmrt.runtime.pipeline.autoencoder.decode import Decoding
from ldmrt.runtime.pipeline.autoencoder.encode import encode_image, encode_mean
from ldmrt.runtime.pipeline.request.images import GivenImages
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.config import Config
from ldmrt.runtime.samplers.noise import MASKED, NOISED, noise
from ldmrt.runtime.samplers.plan import Latents
from ldmrt.runtime.samplers.schedule import signal_and_noise
from ldmrt.runtime.tensors import Engine

NOISE_LEVEL = 20  # by default, as in diffusers' StableDiffusionUpscalePipeline


@dataclass(frozen=True)
class ImageSources:
    """Holds what channels are made of: a request, its images, and what encodes them or adds noise to them."""

    request: Request
    stage: Stage
    given: GivenImages
    engines: Mapping[str, Engine]
    schedulers: Mapping[str, Config]
    how: Decoding

    @property
    def colours(self) -> Latents:
        """The request's image for each image that is made, (images, 3, H, W), values in [0, 1]."""
        if self.given.colours is None:
            raise InvalidRequest("request", "this model is given an image", expected="image")
        return self.given.colours

    @property
    def mask(self) -> Latents:
        """The mask of each image, (images, 1, H, W), 1 where it shall change."""
        if self.given.mask is None or self.given.colours is None:
            raise InvalidRequest("unet", "this model fills a part of an image", expected="image and mask_image")
        return self.given.mask


def _mask(images: ImageSources, source: Source) -> Latents:
    return images.given.small_mask(images.mask, images.stage.space.factor)


def _masked_image(images: ImageSources, source: Source) -> Latents:
    masked = np.where(images.mask < 0.5, images.colours, np.float32(0.5))
    return encode_image(images.engines, images.stage.space, images.how, masked, images.request.seeds, MASKED)


def _image_latents(images: ImageSources, source: Source) -> Latents:
    return encode_mean(images.engines, images.stage.space, images.how, images.colours)


def _noised_image(images: ImageSources, source: Source) -> Latents:
    level = images.stage.source("noise_level")
    if level is None:
        raise BundleError("bundle", "its stage adds noise to an image without a noise_level")
    folder, pixels = str(source.setting("scheduler")), images.colours * 2 - 1
    if folder not in images.schedulers:
        raise BundleError(
            "bundle", "missing scheduler", expected=f"{folder}/scheduler_config.json", hint="export again"
        )
    alpha, sigma = signal_and_noise(images.schedulers[folder], noise_level(images.request, level))
    noised: Latents = np.float32(alpha) * pixels
    noised += np.float32(sigma) * noise(images.request.seeds, NOISED, pixels.shape[1:])
    return noised


def noise_level(request: Request, source: Source) -> int:
    """Return the timestep whose noise is added to the image.

    Raises:
        InvalidRequest: It is above the model's.
    """
    level, most = NOISE_LEVEL if request.noise_level is None else request.noise_level, int(source.setting("most"))
    if level > most:
        raise InvalidRequest("request", "invalid noise_level", expected=f"0 to {most}", found=level)
    return level


BESIDE: Mapping[str, Callable[[ImageSources, Source], Latents]] = {
    "mask": _mask,
    "masked_image": _masked_image,
    "image_latents": _image_latents,
    "noised_image": _noised_image,
}
