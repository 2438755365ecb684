"""Make the first latents: of noise, of an image, or of an image and a mask."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ldmrt.runtime.bundle.stages import Stage
from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.pipeline.autoencoder.decode import Decoding
from ldmrt.runtime.pipeline.autoencoder.encode import encode_image
from ldmrt.runtime.pipeline.request.images import GivenImages, small_mask
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.loop import Blend
from ldmrt.runtime.samplers.noise.counter import FIRST, IMAGE, of_stage
from ldmrt.runtime.samplers.noise.sources import NoiseSource
from ldmrt.runtime.samplers.plan import Latents, Plan
from ldmrt.runtime.tensors import Engine


@dataclass(frozen=True)
class InitialLatents:
    """Holds the first latents of a request, and the latents that are kept in every row."""

    x: Latents  # unit noise, or what another model left
    init: Latents | None = None  # latents of an image, noised to the plan's first node
    blend: Blend | None = None


def initial_latents(
    request: Request,
    plan: Plan,
    engines: Mapping[str, Engine],
    stage: Stage,
    given: GivenImages,
    how: Decoding,
    noise: NoiseSource,
) -> InitialLatents:
    """Make the first latents of a request: of noise or another model's latents, and of its image and mask if any.

    Without a network that takes a mask, the kept part of the image is blended in after every row. An image that the
    network itself is given is no start.

    Args:
        request: The request.
        plan: Its sampler's table.
        engines: Those of the pipeline; the encoder is opened where there is an image.
        stage: The stage that it runs.
        given: Its image and mask.
        how: Whole images or tiles.
        noise: Draws for every image.
    """
    factor = stage.space.factor
    first, encoding = of_stage(FIRST, stage.number), of_stage(IMAGE, stage.number)
    latents = (stage.space.channels, given.size[0] // factor, given.size[1] // factor)
    x = noise(first, latents) if request.latents is None else _given(request, "latents", latents)
    if request.image_latents is not None:
        return InitialLatents(x, _given(request, "image_latents", latents))
    colours, mask = given.colours, given.mask
    if colours is None or stage.takes_image:
        return InitialLatents(x)
    if mask is None:
        return InitialLatents(x, encode_image(engines, stage.space, how, colours, noise, encoding))
    goes_on = request.latents is not None and request.denoising_start is not None
    whole = goes_on or request.strength == 1.0  # the first latents are not made of the image
    init = None
    if not (whole and stage.takes_mask):
        init = encode_image(engines, stage.space, how, colours, noise, encoding)
    small = small_mask(mask, factor)
    if init is not None and request.mask_content in ("noise", "zeros"):
        white = noise(first, latents) if request.mask_content == "noise" else np.float32(0)
        init = init * (1 - small) + white * small
    if stage.takes_mask:
        return InitialLatents(x, init)
    alpha, sigma = np.append(plan.alpha, plan.end_alpha), np.append(plan.sigma, 0.0)
    fresh = noise(first, latents) if goes_on else x

    def blend(row: int, after: Latents) -> Latents:
        kept: Latents = np.float32(alpha[row + 1]) * init + np.float32(sigma[row + 1]) * fresh
        blended: Latents = (1 - small) * kept + small * after
        return blended

    return InitialLatents(x, None if whole else init, blend)


def _given(request: Request, name: str, shape: tuple[int, ...]) -> Latents:
    given, expected = np.asarray(getattr(request, name), np.float32), (len(request.seeds), *shape)
    if given.shape != expected:
        raise InvalidRequest("request", f"wrong shape of {name}", expected=expected, found=given.shape)
    return given
