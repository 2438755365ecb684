"""Images that come in: files, PIL images and arrays, to draw from, as masks, as controls and for training.

The autoencoder, the U-Net and the controls see what diffusers' `VaeImageProcessor` gives them; beyond it, EXIF's
orientation is heeded, every pixel format is scaled from its own range, and transparency is composed on white.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError, LdmrtWarning, first_line
from ldmrt.runtime.files.reading import plain_file
from ldmrt.runtime.optional import unavailable
from ldmrt.runtime.tensors import Array

from .encoded import EncodedImage
from .modes import in_8_bits, on_white, open_all_greys, transposed

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

    Item = Path | Image | Array

Floats = NDArray[np.float32]
Size = tuple[int, int]  # height, width
MAX_PIXELS = 1 << 26  # of a file: decoded, with four bytes a pixel, they take 256 MiB, and composing them as much again
MASK_SOURCES = ("alpha", "luminance")
EXPECTED = "a path, a PIL image, or an array (H, W), (H, W, C) or (N, H, W, C)"
PROGRAMS = ("EPS", "WMF")  # formats that Pillow hands to a program outside
LAYERED = ("MPO", "PSD")  # formats whose other frames belong to the first: previews, layers


def split(what: str, images: object) -> "list[Item]":
    """Return one item for each image: paths to files that are there, PIL images, and arrays (H, W) or (H, W, C).

    `images` is one of these, a list of them, or an array (N, H, W, C); a torch tensor has its channels first, as in
    diffusers. An `LdmrtError` refuses everything else. Nothing is decoded.
    """
    if not isinstance(images, (list, tuple)):
        return _split_one(what, images)
    items = [item for image in images for item in _split_one(what, image)]
    if not items:
        raise LdmrtError(what, "no image in an empty list", expected=EXPECTED)
    return items


def read(what: str, image: object, *, least: int | None = None, animated: bool = True) -> "Image":
    """Open a path, encoded, a PIL image or an array as a PIL image of 8 bits a channel (L, LA, RGB, RGBA), upright.

    An `LdmrtError` tells why it cannot be read, whatever Pillow raises. Of an animated file it is the first frame, or
    the file is refused where `animated` is not allowed. A JPEG may come smaller, though with no side below `least`.
    """
    Image = _pillow(what)
    if isinstance(image, Image.Image):
        with _refusing(what, "the image"):
            if getattr(image, "tile", None):  # not decoded yet
                _check_size(what, "the image", image)
            return _decoded(what, "the image", image)
    if not isinstance(image, (str, os.PathLike, EncodedImage)):
        return in_8_bits(what, "the image", _array(what, image))
    name = image.name if isinstance(image, EncodedImage) else str(plain_file(what, Path(image)))
    open_all_greys()
    with _refusing(what, name), Image.open(image) as file:
        if file.format in PROGRAMS:
            raise LdmrtError(what, f"cannot read {name}", expected="an image", found=file.format)
        _scale_jpeg(file, least)
        _check_size(what, name, file)
        if file.format not in LAYERED and _is_animated(file):
            if not animated:
                found = f"{file.n_frames} frames, of an animation or of pages"
                raise LdmrtError(what, f"cannot read {name}", expected="an image", found=found)
            warnings.warn(f"{what}: {name} is animated; its first frame is taken", LdmrtWarning, stacklevel=2)
        return _decoded(what, name, file)


def read_rgb(what: str, image: object, *, least: int | None = None, animated: bool = True) -> "Image":
    """Open an image as `read` does, composed on white: a PIL image of the mode RGB."""
    opened = read(what, image, least=least, animated=animated)
    if _is_transparent(opened):
        _note_transparency(what)
    return _in_mode(on_white(opened), "RGB")


def colors(what: str, images: Sequence[object], size: Size, channels: int = 3) -> Floats:
    """Read images of one size, composed on white.

    Args:
        what: The purpose of the images, for errors.
        images: Items of `split`, or images of `read`.
        size: Height and width; images of another size are resized with Lanczos.
        channels: 3 for RGB, 1 for grey.

    Returns:
        Values from 0 to 1, (N, channels, H, W), float32.

    Raises:
        LdmrtError: An image cannot be read, or the number of channels is neither 1 nor 3.
    """
    modes = {1: "L", 3: "RGB"}
    if channels not in modes:
        raise LdmrtError(what, f"takes {channels} channels", expected="a network that takes colours, or grey")
    arrays, transparent = [], False
    for image in images:
        opened = read(what, image)
        transparent |= _is_transparent(opened)
        composed = on_white(opened)
        # A grey image is the same in three channels after resizing as before, and takes a quarter of the memory.
        resized = resized_to(composed if composed.mode == "L" else _in_mode(composed, modes[channels]), size)
        arrays.append(np.asarray(_in_mode(resized, modes[channels])).reshape(*size, channels))
    if transparent:
        _note_transparency(what)
    values: Floats = np.stack(arrays).transpose(0, 3, 1, 2) / np.float32(255)
    return values


def masks(images: Sequence[object], size: Size, source: str | None = None) -> Floats:
    """Read masks as (N, 1, H, W), float32: 1 where white asks for something new, 0 where the image is kept.

    `source` says what of a mask is meant, its alpha (new where it is opaque) or its luminance. By default it is the
    luminance, and the alpha where all colours are alike and the alpha is not. In a mask of zeros and ones one is white.
    """
    greys = [resized_to(_in_full(_mask_plane(read("mask", image), source)), size).convert("L") for image in images]
    return (np.stack(list(map(np.asarray, greys)))[:, None] >= 127.5).astype(np.float32)


def grey_mask(image: object, source: str | None = None) -> "Image":
    """Read a mask as `masks` does, as a grey PIL image of its own size."""
    return _in_full(_mask_plane(read("mask", image), source)).convert("L")


def for_each(arrays: Floats, count: int) -> Floats:
    """Repeat one image, or one for each prompt, for `count` images: the first ones are of the first prompt."""
    return arrays.repeat(count // len(arrays), axis=0)


def _split_one(what: str, image: object) -> "list[Item]":
    """Return the items of a path, an image or an array; refuse everything else."""
    if isinstance(image, (str, os.PathLike)):
        return [plain_file(what, Path(image))]
    if isinstance(image, (list, tuple)):
        raise LdmrtError(what, "invalid image", expected=EXPECTED, found=f"a {type(image).__name__} in a list")
    if isinstance(image, _pillow(what).Image):
        return [image]
    array = _array(what, image)
    return list(array) if array.ndim == 4 else [array]


def _array(what: str, image: Any) -> Array:
    """Return an array, or a torch tensor, which has the channels first, as (H, W), (H, W, C) or (N, H, W, C)."""
    tensor = hasattr(image, "detach") and hasattr(image, "cpu")
    try:
        if tensor:
            image = image.detach().cpu()
            image = image.float() if image.is_floating_point() else image  # NumPy has no bfloat16
        array = np.asarray(image)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LdmrtError(what, "invalid image", expected=EXPECTED, found=first_line(error)) from None
    if array.dtype.kind not in "buif":
        raise LdmrtError(what, "invalid image", expected=EXPECTED, found=type(image).__name__)
    if tensor and array.ndim in (3, 4):
        array = np.moveaxis(array, -3, -1)
    if array.ndim not in (2, 3, 4) or (array.ndim > 2 and not 1 <= array.shape[-1] <= 4) or 0 in array.shape:
        expected = "(H, W), (H, W, C) or (N, H, W, C), of 1 to 4 channels"
        raise LdmrtError(what, "wrong shape of an image", expected=expected, found=array.shape)
    return array


def _pillow(what: str) -> ModuleType:
    """Import Pillow's module Image."""
    try:
        from PIL import Image
    except ImportError as error:
        raise unavailable(error, what) from None
    return Image


@contextlib.contextmanager
def _refusing(what: str, name: str) -> Iterator[None]:
    """Turn whatever Pillow and its plugins raise into an `LdmrtError`: for a damaged file that may be any exception."""
    try:
        yield
    except LdmrtError:
        raise
    except Exception as error:
        plain = isinstance(error, (OSError, SyntaxError, ValueError)) and str(error)
        found = first_line(error) if plain else f"{type(error).__name__}: {first_line(error)}"
        raise LdmrtError(what, f"cannot read {name}", expected="an image", found=found) from None


def _pixels(image: "Image") -> int:
    """Count the pixels of an image."""
    return int(image.width * image.height)


def _check_size(what: str, name: str, image: "Image") -> None:
    """Refuse an image that is too large to be decoded."""
    if (pixels := _pixels(image)) > MAX_PIXELS:
        found = f"{image.width}x{image.height}, {pixels / 1e6:.0f}"
        expected = f"at most {MAX_PIXELS / 1e6:.0f} megapixels"
        raise LdmrtError(
            what, f"cannot read {name}: it is too large", expected=expected, found=found, hint="make it smaller first"
        )


def _is_animated(image: "Image") -> bool:
    """Tell whether there is a second frame; False where the file does not tell."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:
        return False


def _scale_jpeg(file: "ImageFile", least: int | None) -> None:
    """Let a JPEG be decoded at a fraction of its size: where no side is below `least`, or to stay within the bound.

    A progressive JPEG beyond the bound is refused later: all its coefficients are in memory, whatever the fraction.
    """
    if file.format in ("JPEG", "MPO") and (_pixels(file) <= MAX_PIXELS or not file.info.get("progressive")):
        if least:
            file.draft(None, (least, least))
        elif _pixels(file) > MAX_PIXELS:
            file.draft(None, (file.width // 2, file.height // 2))


def _decoded(what: str, name: str, image: "Image") -> "Image":
    """Decode a PIL image and turn it upright. PNG may store the orientation after the pixels, and TIFF turns itself."""
    if 0 in image.size:
        raise LdmrtError(what, "invalid image", expected="at least one pixel", found=f"{image.width}x{image.height}")
    _load(image)
    return transposed(in_8_bits(what, name, image), orientation_of(image))


def _load(image: Any) -> None:
    """Decode a PIL image without mapping its file: Pillow maps a TIFF that it will turn at the size it then has."""
    if not getattr(image, "tile", None):
        image.load()
        return
    name, image.filename = getattr(image, "filename", ""), ""
    try:
        image.load()
    finally:
        image.filename = name


def orientation_of(image: "Image") -> int:
    """Return EXIF's orientation, 1 to 8; 1 where EXIF is damaged."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:
        return 1


def _is_transparent(image: "Image") -> bool:
    """Tell whether any pixel of an image is not opaque."""
    return image.mode.endswith("A") and image.getchannel("A").getextrema() != (255, 255)


def _note_transparency(what: str) -> None:
    """Warn that transparency is composed on white."""
    warnings.warn(f"{what}: transparency is composed on white", LdmrtWarning, stacklevel=3)


def _mask_plane(image: "Image", source: str | None) -> "Image":
    """Return the alpha of a mask, or its colours without it."""
    has_alpha = image.mode.endswith("A")
    if source == "alpha" and not has_alpha:
        raise LdmrtError("mask", "has no alpha to take it from", expected="an alpha channel", found=image.mode)
    if source is None and has_alpha:
        extrema: Any = image.getextrema()
        *bands, alpha = extrema
        if alpha[0] != alpha[1]:
            source = "alpha" if all(low == high for low, high in bands) else "luminance"
            kind = "of one colour" if source == "alpha" else "transparent in parts"
            message = f"mask: {kind}, and taken from its {source}; mask_from (--mask-from) decides"
            warnings.warn(message, LdmrtWarning, stacklevel=3)
    if source == "alpha":
        return image.getchannel("A")
    return image.convert(image.mode[:-1]) if has_alpha else image


def _in_full(plane: "Image") -> "Image":
    """Scale a mask of zeros and ones to 255 for one."""
    extrema = plane.getextrema()
    return plane.point(lambda level: 255 * level) if extrema in ((0, 1), ((0, 1),) * 3) else plane


def _in_mode(image: "Image", mode: str) -> "Image":
    """Convert an image, without the copy that Pillow makes of one that has this mode."""
    return image if image.mode == mode else image.convert(mode)


def resized_to(image: "Image", size: Size) -> "Image":
    """Resize an image to (height, width) with Lanczos, where it has another size."""
    from PIL import Image

    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)
