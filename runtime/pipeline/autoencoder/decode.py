"""Decode latents to images: whole or in tiles, one at a time, and once more in float32 where fp16 overflows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.bundle.graphs import DECODER, DECODER_FP32, FRONT, TILE, denoiser_of
from ldmrt.runtime.bundle.stages import PIXELS, Space
from ldmrt.runtime.errors import LdmrtError, NotFinite
from ldmrt.runtime.images.writing import levels
from ldmrt.runtime.nearest import suggestion
from ldmrt.runtime.tensors import Engine

from .safety import ON, SAFETY
from .tiling import OVERLAP, PASSES, Floats, tiled, tiled_as_whole

ON_OVERFLOW = ("stop", "retry")
VERIFY = "ldmrt verify BUNDLE --against CHECKPOINT"
# Pixels. Stable Diffusion's decoder takes 1.8 GB at 512 and 5.1 at 1024, its U-Net 4 all the time.
LARGE, TILED = 768, 512


@dataclass(frozen=True)
class Decoding:
    """Holds how latents are decoded, and images encoded.

    Attributes:
        tile: The side of a tile in pixels; None takes an image in one piece.
        on_overflow: For an image that is not finite: "stop" is an error, "retry" decodes it once more with the float32
            decoder.
        sparing: Chooses tiles by itself for a large image.
        passes: Over all tiles: with 1 each tile is decoded for itself, with more the norms of a pass take the whole
            image's statistics from the pass before.
        safety: One of `SAFETY`: what becomes of images that a safety checker flags.
    """

    tile: int | None = None
    on_overflow: str = "stop"
    sparing: bool = False
    passes: int = PASSES
    safety: str = ON

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        if self.on_overflow not in ON_OVERFLOW:
            problem = f"invalid on_overflow{suggestion(self.on_overflow, ON_OVERFLOW)}"
            raise LdmrtError("decode", problem, expected=" or ".join(ON_OVERFLOW), found=self.on_overflow)
        if self.passes < 1:
            raise LdmrtError("decode", "invalid passes over the tiles", expected="1 or more", found=self.passes)
        if self.safety not in SAFETY:
            near = suggestion(self.safety, SAFETY)
            raise LdmrtError("open", f"unknown safety mode{near}", expected=", ".join(SAFETY), found=self.safety)

    def cells(self, factor: int, size: tuple[int, ...]) -> int | None:
        """Return the side of a tile in latents of `factor` pixels, for an image of `size` latents; None is no tiles."""
        tile = self.tile
        if tile is None and self.sparing and max(size, default=0) * factor > LARGE:
            tile = TILED
        if tile is None:
            return None
        if tile % factor or tile < OVERLAP * factor:
            expected = f"a multiple of {factor}, at least {OVERLAP * factor}"
            raise LdmrtError("decode", "invalid tile", expected=expected, found=tile)
        return None if max(size, default=0) <= tile // factor else tile // factor


def decode(
    engines: Mapping[str, Engine], space: Space, latents: Floats, how: Decoding, decoder: str = DECODER
) -> NDArray[np.uint8]:
    """Decode latents (N, C, h, w) to images (N, H, W, 3 or 6), one at a time: in memory is one image, or one tile.

    A state of pixels is its own image, with as many channels as it has. `decoder` names the network, and `space` has
    the scale and shift of what it takes.

    Raises:
        NotFinite: The decoder's output is not finite or, of a model in pixels, the U-Net's.
    """
    return np.concatenate([levels(image) for image in _decoded(engines, space, latents, how, decoder)])


def unscaled(space: Space, latents: Floats) -> Floats:
    """Return latents (N, C, h, w) of a sampler as the decoder of this space takes them."""
    found: Floats = latents / np.float32(space.scaling_factor) + np.float32(space.shift_factor)
    return found


def decode_unrounded(engines: Mapping[str, Engine], space: Space, latents: Floats, how: Decoding) -> Floats:
    """Decode latents likewise, to float32 in [0, 1]."""
    return np.concatenate(list(_decoded(engines, space, latents, how)))


def _decoded(
    engines: Mapping[str, Engine], space: Space, latents: Floats, how: Decoding, decoder: str = DECODER
) -> Iterator[Floats]:
    """Yield the image of each latent, (1, H, W, 3), values in [0, 1]."""
    cells, factors = how.cells(space.factor, latents.shape[2:]), (1, space.factor)

    def draw(name: str, latent: Floats) -> Floats:
        if cells is None:
            return engines[name](latent_sample=latent)["sample"].astype(np.float32, copy=False)
        with np.errstate(invalid="ignore"):  # an image that is not finite is an error below
            if how.passes == 1 or name + TILE not in engines:
                return tiled(engines[name], latent, cells, ("latent_sample", "sample"), factors)
            features = engines[name + FRONT](latent_sample=latent)["features"]  # attention sees the whole
            return tiled_as_whole(engines[name + TILE], features, cells, ("features", "sample"), factors, how.passes)

    for latent in latents:
        out = latent[None] if space.codec == PIXELS else draw(decoder, unscaled(space, latent[None]))
        spare = decoder == DECODER and how.on_overflow == "retry" and DECODER_FP32 in engines
        if spare and not np.isfinite(out).all():
            out = draw(DECODER_FP32, unscaled(space, latent[None]))
        if not np.isfinite(out).all():
            raise NotFinite(
                denoiser_of(engines) if space.codec == PIXELS else decoder,
                "the image is not finite",
                hint=_hint(engines, how) if decoder == DECODER else VERIFY,
            )
        yield (out if space.least == 0 else out / 2 + 0.5).clip(0, 1).transpose(0, 2, 3, 1)


def _hint(engines: Mapping[str, Engine], how: Decoding) -> str:
    if DECODER not in engines:
        return VERIFY
    if DECODER_FP32 not in engines:
        return "ldmrt export CHECKPOINT BUNDLE --precision fp16 --fp32-decoder, then generate with --on-overflow retry"
    return "--on-overflow retry" if how.on_overflow == "stop" else VERIFY
