"""Decoding in tiles, and what becomes of a picture that is not finite, with decoders that are easy to predict."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.bundle import Shape
from ldmrt.runtime.decode import Decoding, decode, fades, tiled, tiled_as_whole
from ldmrt.runtime.specs import TensorSpec

FACTOR = 4
Array = NDArray[Any]


class Decoder:
    """Each latent's first three channels, `FACTOR` pixels a side, and what `more` makes of them."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, more: Callable[[Array], Array] = lambda drawn: drawn) -> None:
        self.more, self.sides = more, list[tuple[int, ...]]()

    def __call__(self, **arrays: Array) -> dict[str, Array]:
        latents = arrays["latent_sample"]
        self.sides.append(latents.shape[2:])
        return {"sample": self.more(latents[:, :3].repeat(FACTOR, axis=2).repeat(FACTOR, axis=3))}

    def close(self) -> None: ...


def latents(*size: int) -> Array:
    return np.random.default_rng(0).standard_normal((1, 4, *size), dtype=np.float32)


@pytest.mark.parametrize("cells", [4, 7, 8, 16])
@pytest.mark.parametrize("length", [3, 8, 9, 15, 16, 17, 31, 64])
def test_shares_of_a_pixel_add_up_to_one(length: int, cells: int) -> None:
    tiles, total = fades(length, cells, FACTOR), np.zeros(length * FACTOR)
    for start, share in tiles:
        assert share.shape == (min(cells, length) * FACTOR,)
        assert share.min() >= 0
        total[start * FACTOR : start * FACTOR + len(share)] += share
    np.testing.assert_allclose(total, 1, rtol=3 * 2.0**-24)  # sums of three float32 at most
    ends = [start + cells for start, _ in tiles]
    assert all(end - start >= cells // 4 for end, (start, _) in zip(ends, tiles[1:], strict=False))


@pytest.mark.parametrize("size", [(8, 20), (19, 8), (33, 17)])
def test_decoder_that_looks_at_one_latent_draws_the_same_in_tiles(size: tuple[int, int]) -> None:
    z, decoder = latents(*size), Decoder()
    found = tiled(decoder, z, 8, FACTOR)
    assert set(decoder.sides) == {(8, 8)}
    whole = Decoder()(latent_sample=z)["sample"]
    np.testing.assert_allclose(
        found, whole, atol=4 * 2.0**-24 * np.abs(whole).max()
    )  # shares and their sum are rounded


def test_what_norms_do_to_a_tile_leaves_no_seam() -> None:
    """A decoder whose tiles are all lighter or darker by much: neighbouring pixels differ no more than by fading."""
    many = iter(range(100))
    found = tiled(Decoder(lambda drawn: drawn * 0 + next(many) % 2), np.zeros((1, 4, 40, 40), np.float32), 16, FACTOR)
    assert (found.min(), found.max()) == (0, 1)
    steepest = max(np.abs(np.diff(found, axis=axis)).max() for axis in (2, 3))
    assert steepest <= 1.01 / (16 // 4 * FACTOR)  # from one to the other over a quarter of a tile


def test_tiles_as_the_pipeline_asks_for_them() -> None:
    shape, z, decoder = Shape(4, FACTOR, 2.0, 16), latents(12, 20), Decoder()
    engines = {"vae_decoder": decoder}
    whole = decode(engines, shape, z, Decoding())
    assert decoder.sides == [(12, 20)]
    assert np.abs(decode(engines, shape, z, Decoding(tile=48)).astype(int) - whole).max() <= 1  # a rounding
    assert set(decoder.sides[1:]) == {(12, 12)}
    again = decode(engines, shape, z, Decoding(tile=80))
    assert again.tobytes() == whole.tobytes()  # it fits into one tile
    assert decoder.sides[-1] == (12, 20)


class Front:
    """Latents as features."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __call__(self, **given: Array) -> dict[str, Array]:
        return {"features": given["latent_sample"]}

    def close(self) -> None: ...


class Normed:
    """Two norms of two groups, something bent after each, then pixels: nothing that looks at its neighbours."""

    inputs = (TensorSpec("mean", "float32", ("batch", 2, 2)),)
    outputs: tuple[TensorSpec, ...] = ()

    def __call__(self, **given: Array) -> dict[str, Array]:
        x, share = given["features"], given["share"] / given["share"].sum()
        moments = []
        for norm in range(2):
            mean, variance = (given[name][:, :, norm].repeat(2, 1)[..., None, None] for name in ("mean", "variance"))
            d = x - mean
            first, second = ((one * share).sum((2, 3)).reshape(1, 2, 2).mean(2) for one in (d, d * d))
            moments.append((first, second))
            if given["own"]:
                mine = first.repeat(2, 1)[..., None, None]
                d, variance = d - mine, second.repeat(2, 1)[..., None, None] - mine**2
            x = np.tanh(d / np.sqrt(variance + 1e-6) + 0.3)
        pixels = x[:, :3].repeat(FACTOR, axis=2).repeat(FACTOR, axis=3)
        return {"sample": pixels} | {f"moment_{i + 1}": np.stack([one[i] for one in moments], 2) for i in range(2)}

    def close(self) -> None: ...


def test_tiles_are_the_whole_after_as_many_passes_as_norms() -> None:
    """The first finds the first norm's statistics, the next the second's, the last draws."""
    z = latents(12, 20) + np.linspace(-2, 2, 20, dtype=np.float32)  # so that no tile is like another
    uniform, nothing = np.ones((12, 20)), np.zeros((1, 2, 2))
    whole = Normed()(features=z, share=uniform, mean=nothing, variance=nothing, own=np.ones(1))["sample"]
    off = [np.abs(tiled_as_whole(Front(), Normed(), z, 8, FACTOR, passes) - whole).max() for passes in (1, 2, 3, 4)]
    assert min(off[:2]) > 0.005
    assert max(off[2:]) < 1e-5  # float32 latents, and shares that are rounded


@pytest.mark.parametrize("name", ["vae_decoder", "vae_decoder_fp32"])
def test_norms_are_shared_where_a_decoder_can(name: str) -> None:
    """One pass is each tile for itself; a picture that fits into one tile is decoded whole."""
    shape, z = Shape(4, FACTOR, 1.0, 16), latents(12, 20)
    engines: dict[str, Any] = {"vae_decoder": Decoder(halves), "vae_decoder_fp32": Decoder()}
    z = z * 1e6 if name.endswith("fp32") else z
    alone = decode(engines, shape, z, Decoding(tile=32, on_overflow="retry", passes=1))
    whole = decode(engines, shape, z, Decoding(tile=80, on_overflow="retry"))
    engines |= {f"{name}_front": Front(), f"{name}_tile": Normed()}
    assert decode(engines, shape, z, Decoding(tile=32, on_overflow="retry", passes=1)).tobytes() == alone.tobytes()
    assert decode(engines, shape, z, Decoding(tile=80, on_overflow="retry")).tobytes() == whole.tobytes()
    expected = tiled_as_whole(Front(), Normed(), z, 8, FACTOR, 3)
    found = decode(engines, shape, z, Decoding(tile=32, on_overflow="retry"))
    np.testing.assert_array_equal(found[0].transpose(2, 0, 1), np.rint((expected[0] / 2 + 0.5).clip(0, 1) * 255))


@pytest.mark.parametrize("tile", [0, -16, 12, 50])
def test_impossible_tile(tile: int) -> None:
    with pytest.raises(LdmrtError, match=f"impossible tile; expected a multiple of 4, at least 16; found {tile}"):
        Decoding(tile).cells(FACTOR, ())


def test_impossible_passes() -> None:
    with pytest.raises(LdmrtError, match="impossible passes over the tiles; expected 1 or more; found 0"):
        Decoding(passes=0)


def test_impossible_on_overflow() -> None:
    with pytest.raises(LdmrtError, match="impossible on_overflow; expected stop or retry; found again"):
        Decoding(on_overflow="again")


def halves(drawn: Array) -> Array:
    with np.errstate(over="ignore"):
        return drawn.astype(np.float16)


@pytest.mark.parametrize("tile", [None, 16])
def test_overflow(tile: int | None) -> None:
    """Of two pictures the second is too large for halves."""
    shape = Shape(4, FACTOR, 1.0, 16)
    pair = np.concatenate([latents(8, 8), latents(8, 8) * 1e6])
    narrow, wide = Decoder(halves), Decoder()
    both = {"vae_decoder": narrow, "vae_decoder_fp32": wide}
    with pytest.raises(LdmrtError, match=r"vae_decoder: the picture is not finite\n  try: .*--on-overflow retry"):
        decode(both, shape, pair, Decoding(tile))
    assert wide.sides == []
    found = decode(both, shape, pair, Decoding(tile, "retry"))
    expected = decode({"vae_decoder": Decoder()}, shape, pair, Decoding(tile))
    assert len(wide.sides) == (1 if tile is None else 9)  # the second alone
    np.testing.assert_array_equal(found[1], expected[1])
    assert np.abs(found[0].astype(int) - expected[0]).max() <= 1  # a half's rounding
    for how in ("stop", "retry"):
        with pytest.raises(LdmrtError, match="--fp32-decoder"):
            decode({"vae_decoder": narrow}, shape, pair, Decoding(tile, how))
    with pytest.raises(LdmrtError, match="try: ldmrt verify"):
        decode({**both, "vae_decoder_fp32": narrow}, shape, pair, Decoding(tile, "retry"))
