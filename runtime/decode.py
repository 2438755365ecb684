"""Latents to pictures: whole or in tiles, one at a time, and once more in float32 where halves overflow."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import FRONT, TILE, Shape
from .errors import LdmrtError
from .specs import Engine

DECODER, WIDE = "vae_decoder", "vae_decoder_fp32"  # the second beside the first where that one computes in halves
ON_OVERFLOW = ("stop", "retry")
# Of a tile's side its neighbour shares one part in so many, and as many latents as convolutions see, or half of it.
OVERLAP, REACH = 4, 8
# Pixels. Stable Diffusion's decoder takes 1.8 GB at 512 and 5.1 at 1024, its U-Net 4 all the time.
LARGE, TILED = 768, 512
PASSES = 3  # over all tiles, of which the last draws
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Decoding:
    """How latents are decoded.

    `tile` is the side of a tile in pixels; None decodes a picture in one piece. `on_overflow` says what becomes of a
    picture that is not finite: "stop" is an error, "retry" decodes it once more with the decoder of float32. `sparing`
    chooses tiles by itself for a picture that is large. `passes` over the tiles: with 1 each is drawn for itself, with
    more their norms are told, by the pass before, what the whole looks like.
    """

    tile: int | None = None
    on_overflow: str = "stop"
    sparing: bool = False
    passes: int = PASSES

    def __post_init__(self) -> None:
        if self.on_overflow not in ON_OVERFLOW:
            raise LdmrtError(
                "decode", "impossible on_overflow", expected=" or ".join(ON_OVERFLOW), found=self.on_overflow
            )
        if self.passes < 1:
            raise LdmrtError("decode", "impossible passes over the tiles", expected="1 or more", found=self.passes)

    def cells(self, factor: int, size: tuple[int, ...]) -> int | None:
        """The side of a tile in latents of `factor` pixels, for a picture of `size` latents; None is no tiles."""
        tile = self.tile
        if tile is None and self.sparing and max(size, default=0) * factor > LARGE:
            tile = TILED
        if tile is None:
            return None
        if tile % factor or tile < OVERLAP * factor:
            expected = f"a multiple of {factor}, at least {OVERLAP * factor}"
            raise LdmrtError("decode", "impossible tile", expected=expected, found=tile)
        return None if max(size, default=0) <= tile // factor else tile // factor


def decode(engines: Mapping[str, Engine], shape: Shape, latents: Floats, how: Decoding) -> NDArray[np.uint8]:
    """Latents (N, C, h, w) to pictures (N, H, W, 3), one at a time: in memory is one picture, or one tile."""
    cells, scale = how.cells(shape.factor, latents.shape[2:]), np.float32(shape.scaling_factor)

    def draw(name: str, one: Floats) -> Floats:
        if cells is None:
            return engines[name](latent_sample=one)["sample"].astype(np.float32, copy=False)
        with np.errstate(invalid="ignore"):  # what is not finite is told of below
            if how.passes > 1 and name + TILE in engines:
                return tiled_as_whole(engines[name + FRONT], engines[name + TILE], one, cells, shape.factor, how.passes)
            return tiled(engines[name], one, cells, shape.factor)

    pictures = []
    for one in latents:
        out = draw(DECODER, one[None] / scale)
        if how.on_overflow == "retry" and WIDE in engines and not np.isfinite(out).all():
            out = draw(WIDE, one[None] / scale)
        if not np.isfinite(out).all():
            raise LdmrtError(DECODER, "the picture is not finite", hint=_hint(engines, how))
        pictures.append(np.rint((out / 2 + 0.5).clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1))
    return np.concatenate(pictures)


def _hint(engines: Mapping[str, Engine], how: Decoding) -> str:
    if WIDE not in engines:
        return "ldmrt export CHECKPOINT BUNDLE --precision fp16 --fp32-decoder, then generate with --on-overflow retry"
    return "--on-overflow retry" if how.on_overflow == "stop" else "ldmrt verify BUNDLE --against CHECKPOINT"


def tiled(decoder: Engine, latents: Floats, cells: int, factor: int) -> Floats:
    """Decode latents (1, C, h, w) in tiles of `cells` latents a side that overlap by a quarter or more, each fading
    linearly into its neighbours, much as diffusers' `AutoencoderKL.tiled_decode` does: (1, 3, H, W).

    Of what lies beyond its tile a convolution misses little. But norms and attention look at all that they are given:
    a tile comes out a little lighter or darker than in the whole, and the fading spreads the difference.
    """
    high, wide = latents.shape[2:]
    out = np.zeros((1, 3, high * factor, wide * factor), np.float32)
    for (place, _), (pixels, share) in zip(grid(high, wide, cells, 1), grid(high, wide, cells, factor), strict=True):
        tile = np.ascontiguousarray(latents[place])
        out[pixels] += decoder(latent_sample=tile)["sample"].astype(np.float32, copy=False) * share
    return out


def tiled_as_whole(front: Engine, rest: Engine, latents: Floats, cells: int, factor: int, passes: int) -> Floats:
    """As `tiled`, but what attends sees the whole, and the norms of what is drawn in tiles take mean and variance of
    the whole, which the pass before found: the first pass with each tile's own.

    A norm's statistics are exact where those of all norms before it were, so as many passes as there are norms would
    be exact; three come close.
    """
    features = front(latent_sample=latents)["features"]
    high, wide = latents.shape[2:]
    out = np.zeros((1, 3, high * factor, wide * factor), np.float32)
    kinds = next((1, *map(int, spec.shape[1:])) for spec in rest.inputs if spec.name == "mean")
    mean, variance, own = np.zeros(kinds), np.ones(kinds), np.ones(1)
    for left in reversed(range(passes)):
        first, second = np.zeros(kinds), np.zeros(kinds)
        for (place, part), (pixels, share) in zip(
            grid(high, wide, cells, 1), grid(high, wide, cells, factor), strict=True
        ):
            tile = np.ascontiguousarray(features[place])
            found = rest(features=tile, share=part, mean=mean, variance=variance, own=own)
            first += found["moment_1"] * (part.sum() / (high * wide))
            second += found["moment_2"] * (part.sum() / (high * wide))
            if not left:
                out[pixels] += found["sample"].astype(np.float32, copy=False) * share
        mean, variance, own = mean + first, second - first**2, np.zeros(1)
    return out


def grid(high: int, wide: int, cells: int, factor: int) -> Iterator[tuple[Any, Floats]]:
    """Tiles of `cells` latents a side: where each lies in an array (..., high * factor, wide * factor), and how much
    each of its numbers counts, (cells * factor, cells * factor).
    """
    for top, down in fades(high, cells, factor):
        for left, across in fades(wide, cells, factor):
            rows, columns = (slice(at * factor, at * factor + len(one)) for at, one in ((top, down), (left, across)))
            yield np.s_[..., rows, columns], down[:, None] * across


def fades(length: int, cells: int, factor: int) -> list[tuple[int, Floats]]:
    """Where tiles begin along a side of `length` latents, evenly spread, and how much each pixel of theirs counts:
    rising from one end over the middle half of the overlap and falling to the other, as pixels at an edge miss most of
    what lies beyond. Over all tiles each pixel's shares add up to one.
    """
    cells = min(cells, length)
    shared = max(cells // OVERLAP, min(cells // 2, REACH))
    many = -(-(length - shared) // (cells - shared))
    starts = np.rint(np.linspace(0, length - cells, many)).astype(int).tolist()
    inside = np.arange(cells * factor) + 0.5  # the middles of its pixels
    total, tiles = np.zeros(length * factor), []
    for start in starts:
        from_left = inside / (shared * factor) if start else np.inf
        from_right = inside[::-1] / (shared * factor) if start + cells < length else np.inf
        share = np.clip(2 * np.minimum(from_left, from_right) - 0.5, 0.0, 1.0) * np.ones(len(inside))
        total[start * factor : start * factor + len(inside)] += share
        tiles.append((start, share))
    return [
        (start, (share / total[start * factor : start * factor + len(share)]).astype(np.float32))
        for start, share in tiles
    ]
