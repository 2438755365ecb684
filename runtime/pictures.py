"""Pictures and masks in: from a file, PIL or NumPy to the arrays that the autoencoder and the U-Net see."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import LdmrtError
from .optional import unavailable

Floats = NDArray[np.float32]
Size = tuple[int, int]  # height, width


def read(what: str, picture: Any) -> Any:
    """A picture as a PIL image; `picture` is one, a path, or an array (H, W) or (H, W, 3), uint8 or 0 to 1."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise unavailable(error, what) from None
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, (str, Path)):
        try:
            with Image.open(picture) as image:
                return ImageOps.exif_transpose(image)
        except (OSError, ValueError, SyntaxError) as error:
            raise LdmrtError(what, f"cannot read {picture}", expected="a picture", found=error) from None
    array = np.asarray(picture)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        raise LdmrtError(what, "wrong shape of a picture", expected="(H, W) or (H, W, 3)", found=array.shape)
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
            raise LdmrtError(what, "impossible picture", expected="uint8, or numbers from 0 to 1", found=array.dtype)
        if array.min() < 0 or array.max() > 1:
            found = f"{array.min():.3g} to {array.max():.3g}"
            raise LdmrtError(what, "impossible picture", expected="uint8, or numbers from 0 to 1", found=found)
        array = np.rint(array * 255).astype(np.uint8)
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def size_of(picture: Any, factor: int) -> Size:
    """Height and width of a PIL image, cut to multiples of `factor`."""
    return picture.height - picture.height % factor, picture.width - picture.width % factor


def colours(what: str, pictures: Sequence[Any], size: Size, channels: int = 3) -> Floats:
    """(N, channels, H, W) from 0 to 1, resized with Lanczos where they have another size. One channel is grey."""
    modes = {1: "L", 3: "RGB"}
    if channels not in modes:
        raise LdmrtError(what, f"takes {channels} channels", expected="a network that takes colours, or grey")
    images = [_resized(read(what, picture).convert(modes[channels]), size) for picture in pictures]
    arrays = np.stack([np.asarray(image, np.float32).reshape(*size, channels) for image in images])
    return arrays.transpose(0, 3, 1, 2) / np.float32(255)


def mask_of(picture: Any, size: Size) -> Floats:
    """(1, 1, H, W): 1 where white asks for something new, 0 where the picture is kept."""
    grey = np.asarray(_resized(read("mask", picture).convert("L"), size), np.float32) / np.float32(255)
    return (grey >= 0.5).astype(np.float32)[None, None]


def _resized(image: Any, size: Size) -> Any:
    from PIL import Image

    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)
