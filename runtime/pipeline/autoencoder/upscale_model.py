"""Enlarge images by an upscale model such as ESRGAN's: a network from pixels to more pixels, in tiles."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.backends.registry import BackendSettings, open_engines
from ldmrt.runtime.bundle.graphs import UPSCALER
from ldmrt.runtime.bundle.hub import local_bundle
from ldmrt.runtime.errors import InvalidRequest, LdmrtError, NotFinite
from ldmrt.runtime.images.reading import MAX_PIXELS, read, resized_to

from .tiling import Floats, fades, tiles
from .upscale_bundle import UpscaleProperties, open_upscale_bundle

if TYPE_CHECKING:
    from PIL.Image import Image

TILE, OVERLAP = 256, 32  # pixels before they are enlarged
LARGEST_TILE, LARGEST_BATCH = 4096, 64
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Progress:
    """Says how many tiles are done of how many; after the last one `pixels` is the image (scale H, scale W, 3)."""

    done: int
    total: int
    pixels: Pixels | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class UpscaleModel:
    """Enlarges images by a constant scale.

    Attributes:
        properties: What the model is.
        engines: Its network.
        tile: The side of a tile in pixels of the image that is enlarged; it decides how much memory a tile takes.
        overlap: How many pixels neighbouring tiles share. They fade into each other over the middle half of it, so that
            no pixel within a quarter of it from a tile's edge is used: where the network sees no farther, the image is
            that of one tile.
        batch: How many tiles the network takes at once.
    """

    properties: UpscaleProperties
    engines: LazyEngines = field(repr=False)
    tile: int = TILE
    overlap: int = OVERLAP
    batch: int = 1

    def __post_init__(self) -> None:
        """Refuse tiles that cannot be laid out."""
        multiple = self.properties.multiple
        for name, value, least, most in (
            ("tile", self.tile, 2 * multiple, LARGEST_TILE),
            ("overlap", self.overlap, multiple, self.tile // 2),
            ("batch", self.batch, 1, LARGEST_BATCH),
        ):
            if type(value) is not int or not least <= value <= most:
                raise InvalidRequest(
                    name, "tiles of this size cannot be laid out", expected=f"{least} to {most}", found=f"{value!r:.50}"
                )

    @property
    def name(self) -> str:
        """Return the name of the file that the model was exported from, without its ending."""
        return self.properties.name

    def steps(self, pixels: Pixels) -> Iterator[Progress]:
        """Enlarge an image, and yield after each batch of tiles.

        Args:
            pixels: (H, W, 3), of any size.

        Raises:
            LdmrtError: The enlarged image would be too large.
            NotFinite: The network returned infinities or NaN.
        """
        scale, (height, width) = self.properties.scale, pixels.shape[:2]
        if not pixels.size or height * width * scale**2 > MAX_PIXELS:
            expected, found = f"1 to {MAX_PIXELS / 1e6:.0f} megapixels after it", f"{width}x{height}, x{scale}"
            raise LdmrtError(UPSCALER, "the image cannot be enlarged", expected=expected, found=found)
        image = padded(pixels.transpose(2, 0, 1)[None] / np.float32(255), self.properties)
        multiple, shape = self.properties.multiple, image.shape[2:]
        cells, shared = -(-max(self.tile, self.properties.minimum) // multiple), -(-self.overlap // multiple)
        even = self.properties.minimum <= multiple  # else a smaller tile may be too small
        total = math.prod(len(fades(side // multiple, cells, 1, even=even, shared=shared)) for side in shape)
        cut = tiles(image, cells, (multiple, multiple * scale), even=even, shared=shared)
        made, done = np.zeros((1, 3, *(side * scale for side in shape)), np.float32), 0
        while batch := list(islice(cut, self.batch)):
            given = np.concatenate([tile for tile, _, _ in batch])
            enlarged = self.engines[UPSCALER](image=given)["enlarged"].astype(np.float32, copy=False)
            if not np.isfinite(enlarged).all():
                raise NotFinite(UPSCALER, "the enlarged image is not finite", hint="export it with --precision fp32")
            for one, (_, place, share) in zip(enlarged, batch, strict=True):
                made[place] += one * share
            done += len(batch)
            if done < total:
                yield Progress(done, total)
        whole = made[0, :, : height * scale, : width * scale].transpose(1, 2, 0)
        yield Progress(total, total, np.rint(whole.clip(0, 1) * 255).astype(np.uint8))

    def upscale(self, pixels: Pixels) -> Pixels:
        """Enlarge an image (H, W, 3); see `steps`."""
        *_, last = self.steps(pixels)
        assert last.pixels is not None
        return last.pixels

    def __call__(self, image: object) -> "Image":
        """Enlarge an image of any mode.

        The network sees colours alone. Transparency is resized with Lanczos, grey stays grey.

        Args:
            image: A path, a PIL image, or an array (H, W) or (H, W, 1 to 4).

        Returns:
            A PIL image of the mode L, LA, RGB or RGBA.
        """
        opened = read("image", image)
        return with_transparency(self.upscale(pixels_of(opened)), opened)

    def close(self) -> None:
        """Free the network."""
        self.engines.close()

    def __enter__(self) -> "UpscaleModel":
        """Return the model, which is closed at the end of the `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the model."""
        self.close()


def open_upscale_model(
    bundle: str | Path,
    backend: str = "auto",
    *,
    check: bool = True,
    tile: int = TILE,
    overlap: int = OVERLAP,
    batch: int = 1,
    threads: int = 0,
    compute: str = "fp32",
) -> UpscaleModel:
    """Open the bundle of an upscale model.

    Args:
        bundle: The bundle's folder, or its name on the hub: "owner/name".
        backend: One of `ldmrt.runtime.BACKENDS`.
        check: Compares the bundle's files with its manifest first.
        tile: See `UpscaleModel`.
        overlap: Likewise.
        batch: Likewise.
        threads: Of the CPU; 0 is one a core.
        compute: The precision that OpenVINO computes in.

    Raises:
        BundleError: The bundle is missing, damaged, or no upscale model.
        LdmrtError: An argument is invalid, or a package is missing.
    """
    opened, properties = open_upscale_bundle(local_bundle(bundle), check=check)
    engines = open_engines(opened, backend, BackendSettings(threads, compute=compute))
    return UpscaleModel(properties, engines, tile, overlap, batch)


def padded(image: Floats, properties: UpscaleProperties) -> Floats:
    """Pad an image (1, C, H, W) on the right and below to a size that the network takes, as spandrel does."""
    for axis in (2, 3):
        side = image.shape[axis]
        needed = -(-max(side, properties.minimum) // properties.multiple) * properties.multiple - side
        mirrored = min(needed, side - 1)
        for count, mode in ((mirrored, "reflect"), (needed - mirrored, "edge")):
            pads = [(0, count if one == axis else 0) for one in range(4)]
            image = np.pad(image, pads, mode=mode) if count else image  # type: ignore[call-overload]
    return image


def pixels_of(image: "Image") -> Pixels:
    """Return the colours of an image of 8 bits a channel, (H, W, 3), without its transparency."""
    return np.asarray(image.convert("RGB"))


def with_transparency(pixels: Pixels, image: "Image") -> "Image":
    """Return enlarged colours as an image of the mode of the one that they were, with its transparency resized."""
    from PIL import Image

    enlarged = Image.fromarray(pixels)
    if image.mode.startswith("L"):
        enlarged = enlarged.convert("L")
    if image.mode.endswith("A"):
        enlarged.putalpha(resized_to(image.getchannel("A"), pixels.shape[:2]))
    return enlarged
