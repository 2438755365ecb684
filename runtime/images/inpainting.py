"""Draw what a mask asks for at full resolution: cut its surroundings out, and paste what was drawn over the image.

The region, its resizing and the pasting are those of diffusers' `VaeImageProcessor` (`get_crop_region`, the resize
modes "fill" and "crop", `apply_overlay`), which are AUTOMATIC1111's "only masked".
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import InvalidRequest

from .reading import Size

if TYPE_CHECKING:
    from PIL.Image import Image

MASK_CONTENTS = ("original", "fill", "noise", "zeros")  # what the white of a mask is before it is drawn
Box = tuple[int, int, int, int]  # left, top, right, bottom
# Radii of the blurs that `filled` lays over one another, each with how often: AUTOMATIC1111's `masking.fill`.
BLURS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))


@dataclass(frozen=True, eq=False)
class MaskedRegion:
    """Holds an image with the region around its mask.

    Attributes:
        image: RGB.
        mask: Grey, of the image's size; white where it shall change.
        box: The region that is drawn; None for all of the image.
    """

    image: "Image"
    mask: "Image"
    box: Box | None = None

    def paste(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return images (N, H, W, 3) with what was drawn, (N, h, w, 3), where the mask is white."""
        from PIL import Image

        return np.stack([np.asarray(self._pasted(Image.fromarray(drawn))) for drawn in pixels])

    def _pasted(self, drawn: "Image") -> "Image":
        from PIL import Image, ImageOps

        if self.box is not None:
            left, top, right, bottom = self.box
            whole = Image.new("RGB", self.image.size)
            whole.paste(covering(drawn, (bottom - top, right - left)), (left, top))
            drawn = whole
        kept = Image.new("RGBa", self.image.size)
        kept.paste(self.image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(self.mask))
        composed = drawn.convert("RGBA")
        composed.alpha_composite(kept.convert("RGBA"))
        return composed.convert("RGB")


def crop_region(mask: "Image", size: Size, padding: int) -> Box:
    """Return the region around all of a grey mask that is not black.

    It is `padding` pixels larger on each side, then grown to the aspect ratio of `size`, as far as the image allows.

    Raises:
        InvalidRequest: The mask is black.
    """
    found = mask.getbbox()
    if found is None:
        raise InvalidRequest(
            "mask_image", "the mask is black, so nothing shall change", expected="white where it shall"
        )
    left, top, right, bottom = found
    left, top = max(left - padding, 0), max(top - padding, 0)
    right, bottom = min(right + padding, mask.width), min(bottom + padding, mask.height)
    ratio = size[1] / size[0]
    if (right - left) / (bottom - top) > ratio:
        top, bottom = _grown(top, bottom, (right - left) / ratio, mask.height)
    else:
        left, right = _grown(left, right, (bottom - top) * ratio, mask.width)
    return left, top, right, bottom


def _grown(low: int, high: int, length: float, most: int) -> tuple[int, int]:
    """Return a span that has grown on both sides to a length, moved to begin at 0 or later and to end by `most`."""
    more = int(length - (high - low))
    low, high = low - more // 2, high + more - more // 2
    if high >= most:
        low, high = low - (high - most), most
    if low < 0:
        low, high = 0, high - low
    return low, min(high, most)


def filling(image: "Image", size: Size) -> "Image":
    """Resize an image to fit within (height, width), its ratio kept, and stretch its edges over what is left."""
    from PIL import Image

    height, width = size
    wider = width / height < image.width / image.height
    inner = (width, image.height * width // image.width) if wider else (image.width * height // image.height, height)
    inner = max(1, inner[0]), max(1, inner[1])
    resized = image.resize(inner, Image.Resampling.LANCZOS)
    left, top = width // 2 - inner[0] // 2, height // 2 - inner[1] // 2
    whole = Image.new(image.mode, (width, height))
    whole.paste(resized, (left, top))
    if wider and top:
        whole.paste(resized.resize((width, top), box=(0, 0, width, 0)))
        whole.paste(resized.resize((width, top), box=(0, inner[1], width, inner[1])), (0, top + inner[1]))
    elif left and not wider:
        whole.paste(resized.resize((left, height), box=(0, 0, 0, height)))
        whole.paste(resized.resize((left, height), box=(inner[0], 0, inner[0], height)), (left + inner[0], 0))
    return whole


def covering(image: "Image", size: Size) -> "Image":
    """Resize an image to cover (height, width), its ratio kept, and cut its middle out."""
    from PIL import Image

    height, width = size
    wider = width / height <= image.width / image.height
    outer = (image.width * height // image.height, height) if wider else (width, image.height * width // image.width)
    resized = image.resize(outer, Image.Resampling.LANCZOS)
    left, top = outer[0] // 2 - width // 2, outer[1] // 2 - height // 2
    return resized.crop((left, top, left + width, top + height))


def filled(image: "Image", mask: "Image") -> "Image":
    """Fill the white of a grey mask with the colours around it, blurred the more the farther they are.

    Args:
        image: RGB.
        mask: Grey, of the image's size.
    """
    from PIL import Image, ImageFilter, ImageOps

    kept = Image.new("RGBa", image.size)
    kept.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    whole = Image.new("RGBA", image.size)
    for radius, times in BLURS:
        blurred = kept.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            whole.alpha_composite(blurred)
    return whole.convert("RGB")
