"""Read the image and the mask of a request, once, at the size that its stage takes them."""

import warnings
from dataclasses import dataclass

from ldmrt.runtime.bundle.stages import PIXELS, Stage
from ldmrt.runtime.errors import InvalidRequest, LdmrtWarning
from ldmrt.runtime.images import reading
from ldmrt.runtime.images.sizes import enlarged_size
from ldmrt.runtime.samplers.plan import Latents

from .request import Request

FAR = 4  # times more or fewer pixels than the model's own


@dataclass(frozen=True)
class GivenImages:
    """Holds the image and the mask of each image of a request.

    Attributes:
        size: Height and width, in pixels, of the images that are made.
        colours: (images, 3, H, W), or 1 for a model of grey images, values in [0, 1]; smaller than `size` where the
            stage enlarges them.
        mask: (images, 1, H, W), 1 where the image shall change and 0 where it is kept.
    """

    size: tuple[int, int]
    colours: Latents | None = None
    mask: Latents | None = None


def read_images(request: Request, stage: Stage) -> GivenImages:
    """Read the image and the mask of a request.

    Args:
        request: The request. Its size is that of its image, or of its latents where it goes on with them, or the
            model's own.
        stage: The stage that it runs.

    Raises:
        InvalidRequest: The stage takes no mask, or a side is not a multiple of a latent's pixels.
    """
    factor, enlarges = stage.space.factor, stage.enlarges
    if request.mask_image is not None and stage.takes_image:
        raise InvalidRequest("request", "this model takes no mask_image", expected="image alone")
    if request.image is not None and stage.depth:
        raise InvalidRequest("request", "this model takes no image", expected="a prompt alone")
    first, *others = [None] if request.image is None else reading.split("image", request.image)
    image = None if first is None else reading.read("image", first)
    own = stage.own
    if image is not None:
        own = enlarged_size(image, factor, enlarges)
    if request.latents is not None and request.denoising_start is not None:
        own = request.latents.shape[2] * factor, request.latents.shape[3] * factor
    size = request.size(own, max(factor, enlarges))
    if enlarges == 1:
        _warn_of_size(size, stage.size)
    if image is None:
        return GivenImages(size)
    count, small = request.total_images, (size[0] // enlarges, size[1] // enlarges)
    channels = stage.space.channels if stage.space.codec == PIXELS else 3
    colours = reading.for_each(reading.colors("image", [image, *others], small, channels), count)
    if request.mask_image is None:
        return GivenImages(size, colours)
    masks = reading.masks(reading.split("mask", request.mask_image), size, request.mask_from)
    return GivenImages(size, colours, reading.for_each(masks, count))


def small_mask(mask: Latents, factor: int) -> Latents:
    """Return a mask for latents of `factor` pixels, as diffusers resizes it."""
    return mask[:, :, ::factor, ::factor]


def _warn_of_size(size: tuple[int, int], own: int) -> None:
    """Warn where an image has four times the pixels that the model was trained on, or a quarter.

    Its content repeats itself then, or falls apart.
    """
    share = size[0] * size[1] / own**2
    if not 1 / FAR < share < FAR:
        found = f"{size[1]}x{size[0]} is far from the model's own size, {own}x{own}"
        warnings.warn(f"request: {found}; images may repeat themselves or fall apart", LdmrtWarning, stacklevel=3)
