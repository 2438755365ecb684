"""Read the image and the mask of a request, once, at the size that its stage takes them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.bundle.stages import CONTEXT, PIXELS, Stage
from ldmrt.runtime.errors import InvalidRequest, LdmrtWarning
from ldmrt.runtime.images import reading
from ldmrt.runtime.images.inpainting import MaskedRegion, crop_region, filled, filling
from ldmrt.runtime.images.outpainting import Sides, canvas, whole_cells, whole_latents
from ldmrt.runtime.images.sizes import enlarged_size, image_size, kontext_size
from ldmrt.runtime.images.writing import levels
from ldmrt.runtime.samplers.plan import Latents

from .checks import LARGEST_SIDE
from .request import Request

if TYPE_CHECKING:
    from PIL.Image import Image

Drawn = NDArray[np.uint8] | NDArray[np.float32]
KEEPS = 0.7  # the strength up to which an image that is started from keeps what it shows
FAR = 4  # times more or fewer pixels than the model's own

# Times that what is drawn may be as large as the region that is cut out of it, by the difference of their ratios.
MOST_STRETCHED = 16.0


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
        request: The request. Its size is that of its image (of Kontext a size that it was trained on, of about that
            ratio), or of its latents where it goes on with them, or the model's own; a region around its mask has the
            model's own.
        stage: The stage that it runs.

    Raises:
        InvalidRequest: The stage takes no mask, or a side is not a multiple of a latent's pixels.
    """
    factor, enlarges = stage.space.factor, stage.enlarges
    if request.has_mask and stage.takes_image:
        name = "mask_image" if request.outpaint is None else "outpaint"
        raise InvalidRequest("request", f"this model takes no {name}", expected="image alone")
    if request.image_latents is not None and (stage.takes_image or stage.takes_mask):
        raise InvalidRequest("request", "this model takes no image_latents", expected="a request without image_latents")
    if request.image is not None and stage.depth:
        raise InvalidRequest("request", "this model takes no image", expected="a prompt alone")
    first, *others = [None] if request.image is None else reading.split("image", request.image)
    image = None if first is None else reading.read("image", first)
    own = _own_size(request, stage, None if image is None else (image.height, image.width))
    size = request.size(own, max(stage.space.unit, enlarges))
    if stage.largest and max(size) > stage.largest:
        problem, expected = "this model has no positions for so large an image", f"sides of at most {stage.largest}"
        raise InvalidRequest("request", problem, expected=expected, found=f"{size[1]}x{size[0]}")
    if enlarges == 1 and not (request.starts_from_image and request.strength <= KEEPS):
        _warn_of_size(size, stage.size)
    if image is None:
        return GivenImages(size)
    count, small = request.total_images, (size[0] // enlarges, size[1] // enlarges)
    channels = stage.space.channels if stage.space.codec == PIXELS else 3
    images: Sequence[object] = [image, *others]
    masks: Sequence[object] = [] if request.mask_image is None else reading.split("mask", request.mask_image)
    source = request.mask_from
    if request.padding_mask_crop is not None or request.outpaint is not None:
        images, masks = cut_out(masked_region(request, size), size)
        source = None  # which these masks are made of
    mask = reading.for_each(reading.masks(masks, size, source), count) if masks else None
    if mask is not None and request.outpaint is not None:
        mask = whole_cells(mask, factor)
    if request.mask_content != "original":  # the encoder sees nothing of it
        images = _filled(images, masks, size, source)
    colours = reading.for_each(reading.colors("image", images, small, channels), count)
    return GivenImages(size, colours, mask)


def size_of(request: Request, stage: Stage) -> tuple[int, int]:
    """Return the height and width in pixels that a request is drawn at; of an image no more is read than that needs.

    Raises:
        InvalidRequest: A side is no whole number of latents, or too large.
    """
    image = None
    follows = request.padding_mask_crop is None or request.outpaint is not None
    if request.image is not None and follows and None in (request.height, request.width):
        image = image_size("image", reading.split("image", request.image)[0])
    return request.size(_own_size(request, stage, image), max(stage.space.unit, stage.enlarges))


def _own_size(request: Request, stage: Stage, image: tuple[int, int] | None) -> tuple[int, int]:
    """Return the height and width that a request has which states none.

    Args:
        request: The request.
        stage: The stage that it runs.
        image: Height and width of its image.

    Raises:
        InvalidRequest: A canvas around the image is too large.
    """
    unit, factor = stage.space.unit, stage.space.factor
    held = request.latents if request.denoising_start is not None else request.image_latents
    if held is not None:
        return held.shape[2] * factor, held.shape[3] * factor
    if image is None:
        return stage.own
    own = enlarged_size(image, unit, stage.enlarges)
    if request.outpaint is not None:
        height, width = _canvas_size(image, request.outpaint)
        own = -(-height // unit) * unit, -(-width // unit) * unit
    if request.padding_mask_crop is not None:
        return stage.own
    return kontext_size(own) if stage.source(CONTEXT) is not None and min(own) > 0 else own


def _canvas_size(image: tuple[int, int], sides: Sides) -> tuple[int, int]:
    """Return the height and width of the canvas around an image; refuse one that no image may have."""
    left, top, right, bottom = sides
    height, width = image[0] + top + bottom, image[1] + left + right
    if max(height, width) > LARGEST_SIDE or height * width > reading.MAX_PIXELS:
        expected = f"sides of at most {LARGEST_SIDE}, and {reading.MAX_PIXELS / 1e6:.0f} megapixels"
        raise InvalidRequest("outpaint", "too large a canvas", expected=expected, found=f"{width}x{height}")
    return height, width


def masked_region(request: Request, size: tuple[int, int]) -> MaskedRegion:
    """Read the image and the mask of a request that is drawn at (height, width): the region around the mask, or all.

    Around an image that is outpainted the mask is made here.

    Raises:
        InvalidRequest: The mask is black, or of another size than the image.
    """
    (image,) = reading.split("image", request.image)
    colours = reading.read_rgb("image", image)
    if request.outpaint is not None:
        extended = canvas(colours, request.outpaint, request.feather)
        if request.padding_mask_crop is None:
            return extended
        colours, grey = extended.image, extended.mask
    else:
        (mask,) = reading.split("mask", request.mask_image)
        grey = reading.grey_mask(mask, request.mask_from)
    if colours.size != grey.size:
        problem, (width, height) = "padding_mask_crop with a mask of another size than its image", colours.size
        expected, found = f"{width}x{height}", f"{grey.width}x{grey.height}"
        raise InvalidRequest("request", problem, expected=expected, found=found)
    box = left, top, right, bottom = crop_region(grey, size, request.padding_mask_crop or 0)
    ratio = (right - left) / (bottom - top) * size[0] / size[1]
    if max(ratio, 1 / ratio) > MOST_STRETCHED:
        problem, expected = "the region around the mask is too narrow for this size", "a width and height of its ratio"
        found, hint = f"{right - left}x{bottom - top}", "a larger padding_mask_crop"
        raise InvalidRequest("request", problem, expected=expected, found=found, hint=hint)
    return MaskedRegion(colours, grey, box)


def cut_out(region: MaskedRegion, size: tuple[int, int]) -> "tuple[list[Image], list[Image]]":
    """Return the region of an image, and of its mask, at (height, width); an image without one is filled up to that."""
    if region.box is None:
        image, mask = whole_latents(region, size)
        return [image], [mask]
    return [filling(region.image.crop(region.box), size)], [filling(region.mask.crop(region.box), size)]


def pasted(request: Request, drawn: Drawn) -> Drawn:
    """Return images (N, h, w, C) that were drawn of a request; those of a mask's region, or of a canvas, as a whole."""
    if request.padding_mask_crop is None and request.outpaint is None:
        return drawn
    region = masked_region(request, drawn.shape[1:3])
    if region.box is None:
        drawn = drawn[:, : region.image.height, : region.image.width]
    if drawn.dtype == np.uint8:
        return region.paste(drawn.astype(np.uint8, copy=False))
    floats: NDArray[np.float32] = region.paste(levels(drawn.astype(np.float32, copy=False))) / np.float32(255)
    return floats


def _filled(
    images: Sequence[object], masks: Sequence[object], size: tuple[int, int], source: str | None
) -> "list[Image]":
    """Return images at (height, width), each with the white of its mask filled by the colours around it."""
    colours = [reading.resized_to(reading.read_rgb("image", image), size) for image in images]
    greys = [reading.resized_to(reading.grey_mask(mask, source), size) for mask in masks]
    count = max(len(colours), len(greys))
    return [filled(colours[i % len(colours)], greys[i % len(greys)]) for i in range(count)]


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
