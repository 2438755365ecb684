"""Latents to pictures: whole or in tiles, one at a time, and once more in float32 where halves overflow."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bundle import Shape
from .errors import LdmrtError
from .specs import Engine

DECODER, WIDE = "vae_decoder", "vae_decoder_fp32"  # the second beside the first where that one computes in halves
ON_OVERFLOW = ("stop", "retry")
OVERLAP = 4  # one part in so many of a tile's side is shared with its neighbour, at least
# Pixels. Stable Diffusion's decoder takes 1.8 GB at 512 and 5.1 at 1024, its U-Net 4 all the time.
LARGE, TILE = 768, 512
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Decoding:
    """How latents are decoded.

    `tile` is the side of a tile in pixels; None decodes a picture in one piece. `on_overflow` says what becomes of a
    picture that is not finite: "stop" is an error, "retry" decodes it once more with the decoder of float32. `sparing`
    chooses tiles by itself for a picture that is large.
    """

    tile: int | None = None
    on_overflow: str = "stop"
    sparing: bool = False

    def __post_init__(self) -> None:
        if self.on_overflow not in ON_OVERFLOW:
            raise LdmrtError(
                "decode", "impossible on_overflow", expected=" or ".join(ON_OVERFLOW), found=self.on_overflow
            )

    def cells(self, factor: int, size: tuple[int, ...]) -> int | None:
        """The side of a tile in latents of `factor` pixels, for a picture of `size` latents; None is no tiles."""
        tile = self.tile
        if tile is None and self.sparing and max(size, default=0) * factor > LARGE:
            tile = TILE
        if tile is None:
            return None
        if tile % factor or tile < OVERLAP * factor:
            expected = f"a multiple of {factor}, at least {OVERLAP * factor}"
            raise LdmrtError("decode", "impossible tile", expected=expected, found=tile)
        return None if max(size, default=0) <= tile // factor else tile // factor


def decode(engines: Mapping[str, Engine], shape: Shape, latents: Floats, how: Decoding) -> NDArray[np.uint8]:
    """Latents (N, C, h, w) to pictures (N, H, W, 3), one at a time: in memory is one picture, or one tile."""
    cells, scale = how.cells(shape.factor, latents.shape[2:]), np.float32(shape.scaling_factor)
    pictures = []
    for one in latents:
        out = _draw(engines[DECODER], one[None] / scale, cells, shape.factor)
        if how.on_overflow == "retry" and WIDE in engines and not np.isfinite(out).all():
            out = _draw(engines[WIDE], one[None] / scale, cells, shape.factor)
        if not np.isfinite(out).all():
            raise LdmrtError(DECODER, "the picture is not finite", hint=_hint(engines, how))
        pictures.append(np.rint((out / 2 + 0.5).clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1))
    return np.concatenate(pictures)


def _hint(engines: Mapping[str, Engine], how: Decoding) -> str:
    if WIDE not in engines:
        return "ldmrt export CHECKPOINT BUNDLE --precision fp16 --fp32-decoder, then generate with --on-overflow retry"
    return "--on-overflow retry" if how.on_overflow == "stop" else "ldmrt verify BUNDLE --against CHECKPOINT"


def _draw(decoder: Engine, latents: Floats, cells: int | None, factor: int) -> Floats:
    if cells is None:
        return decoder(latent_sample=latents)["sample"].astype(np.float32, copy=False)
    return tiled(decoder, latents, cells, factor)


def tiled(decoder: Engine, latents: Floats, cells: int, factor: int) -> Floats:
    """Decode latents (1, C, h, w) in tiles of `cells` latents a side that overlap by a quarter or more, each fading
    linearly into its neighbours, as diffusers' `AutoencoderKL.tiled_decode` does: (1, 3, H, W).

    Of what lies beyond its tile a convolution misses little. But norms and attention look at all that they are given:
    a tile comes out a little lighter or darker than in the whole, and the fading spreads the difference.
    """
    high, wide = (side * factor for side in latents.shape[2:])
    out = np.zeros((1, 3, high, wide), np.float32)
    for top, down in fades(high // factor, cells, factor):
        for left, across in fades(wide // factor, cells, factor):
            tile = latents[:, :, top : top + cells, left : left + cells]
            drawn = decoder(latent_sample=np.ascontiguousarray(tile))["sample"].astype(np.float32, copy=False)
            place = np.s_[..., top * factor : top * factor + len(down), left * factor : left * factor + len(across)]
            out[place] += drawn * down[:, None] * across
    return out


def fades(length: int, cells: int, factor: int) -> list[tuple[int, Floats]]:
    """Where tiles begin along a side of `length` latents, evenly spread, and how much each pixel of theirs counts:
    rising from one end over the overlap and falling to the other. Over all tiles each pixel's shares add up to one.
    """
    cells = min(cells, length)
    shared = cells // OVERLAP
    many = -(-(length - shared) // (cells - shared))
    starts = np.rint(np.linspace(0, length - cells, many)).astype(int).tolist()
    inside = np.arange(cells * factor) + 0.5  # the middles of its pixels
    total, tiles = np.zeros(length * factor), []
    for start in starts:
        from_left = inside / (shared * factor) if start else np.inf
        from_right = inside[::-1] / (shared * factor) if start + cells < length else np.inf
        share = np.ones(len(inside)) * np.minimum(1.0, np.minimum(from_left, from_right))
        total[start * factor : start * factor + len(inside)] += share
        tiles.append((start, share))
    return [
        (start, (share / total[start * factor : start * factor + len(share)]).astype(np.float32))
        for start, share in tiles
    ]
