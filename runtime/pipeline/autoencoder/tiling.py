"""Run one side of an autoencoder in tiles that overlap."""

from collections.abc import Iterator
from types import EllipsisType

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.tensors import Engine

# Of a tile's side its neighbour shares one part in so many, and as many latents as convolutions see, or half of it.
OVERLAP, REACH = 4, 8
PASSES = 3  # over all tiles, of which the last draws
Floats = NDArray[np.float32]
Names = tuple[str, str]  # of a network's input, and of its output
Place = tuple[EllipsisType, slice, slice]  # of a tile in an array (..., H, W)
Factors = tuple[int, int]  # numbers a latent of both, along one side


def tiled(network: Engine, x: Floats, cells: int, names: Names, factors: Factors) -> Floats:
    """Run a network on x (1, C, H, W) in tiles of `cells` latents a side, and blend its outputs.

    Tiles overlap by a quarter or more and fade linearly into their neighbours, much as in diffusers'
    `AutoencoderKL.tiled_decode` and `tiled_encode`. Convolutions miss little of the image beyond a tile. But norms and
    attention depend on the whole input: a tile comes out a little lighter or darker, and the fading spreads the
    difference.
    """
    (taken, made), out = names, list[Floats]()
    for tile, place, share in tiles(x, cells, factors):
        _add(out, network(**{taken: tile})[made], place, share, x, factors)
    return out[0]


def tiled_as_whole(network: Engine, x: Floats, cells: int, names: Names, factors: Factors, passes: int) -> Floats:
    """Run a network as `tiled` does, with the norms' mean and variance of the whole image, measured by the pass before.

    The first pass uses each tile's own. A norm's statistics are exact where those of all norms before it were, so as
    many passes as there are norms would be exact; three come close. The tiles are `even`, see `fades`.
    """
    (taken, made), out = names, list[Floats]()
    high, wide = (side // factors[0] for side in x.shape[2:])
    kinds = next((1, *map(int, spec.shape[1:])) for spec in network.inputs if spec.name == "mean")
    mean, variance, own = np.zeros(kinds), np.ones(kinds), np.ones(1)
    for left in reversed(range(passes)):
        first, second = np.zeros(kinds), np.zeros(kinds)
        cut = zip(tiles(x, cells, factors, even=True), grid(high, wide, cells, 1, even=True), strict=True)
        for (tile, place, share), (_, part) in cut:
            found = network(**{taken: tile}, share=part, mean=mean, variance=variance, own=own)
            first += found["moment_1"] * (part.sum() / (high * wide))
            second += found["moment_2"] * (part.sum() / (high * wide))
            if not left:
                _add(out, found[made], place, share, x, factors)
        mean, variance, own = mean + first, second - first**2, np.zeros(1)
    return out[0]


def tiles(
    x: Floats, cells: int, factors: Factors, *, even: bool = False, shared: int | None = None
) -> Iterator[tuple[Floats, Place, Floats]]:
    """Yield each tile of x, its place in the output, and the weight of each pixel there."""
    high, wide = (side // factors[0] for side in x.shape[2:])
    before, after = (grid(high, wide, cells, factor, even=even, shared=shared) for factor in factors)
    for (taken, _), (place, share) in zip(before, after, strict=True):
        yield np.ascontiguousarray(x[taken]), place, share


def _add(out: list[Floats], tile: Floats, place: Place, share: Floats, x: Floats, factors: Factors) -> None:
    """Add a tile's output to the whole, which the first tile allocates."""
    if not out:
        size = (side // factors[0] * factors[1] for side in x.shape[2:])
        out.append(np.zeros((1, tile.shape[1], *size), np.float32))
    out[0][place] += tile.astype(np.float32, copy=False) * share


def grid(
    high: int, wide: int, cells: int, factor: int, *, even: bool = False, shared: int | None = None
) -> Iterator[tuple[Place, Floats]]:
    """Yield tiles of `cells` latents a side: the place in an array (..., high * factor, wide * factor), and weights.

    The weights of a tile's pixels are (cells * factor, cells * factor), or fewer where tiles are `even`, see `fades`.
    """
    for top, down in fades(high, cells, factor, even=even, shared=shared):
        for left, across in fades(wide, cells, factor, even=even, shared=shared):
            rows, columns = (slice(at * factor, at * factor + len(one)) for at, one in ((top, down), (left, across)))
            yield (..., rows, columns), down[:, None] * across


def fades(
    length: int, cells: int, factor: int, *, even: bool = False, shared: int | None = None
) -> list[tuple[int, Floats]]:
    """Return where tiles begin along a side of `length` latents, evenly spread, and the weight of each of their pixels.

    Weights rise from one end over the middle half of the overlap and fall to the other, as pixels at an edge miss most
    of the image beyond. Over all tiles each pixel's weights add up to one. `even` tiles have no more latents than their
    overlaps need, 54 of 64 where three tiles cover 128: networks that take any size have less to compute. `shared` is
    the overlap in latents, at most half of `cells`.
    """
    cells = min(cells, length)
    shared = max(cells // OVERLAP, min(cells // 2, REACH)) if shared is None else min(shared, cells // 2)
    many = -(-(length - shared) // (cells - shared))
    if even:
        cells = -(-(length + (many - 1) * shared) // many)
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
