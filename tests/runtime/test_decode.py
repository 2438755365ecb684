"""Decoding in tiles, and what becomes of a picture that is not finite, with decoders that are easy to predict."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.bundle import Shape
from ldmrt.runtime.decode import Decoding, decode, fades, tiled
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
        assert share.min() > 0
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


@pytest.mark.parametrize("tile", [0, -16, 12, 50])
def test_impossible_tile(tile: int) -> None:
    with pytest.raises(LdmrtError, match=f"impossible tile; expected a multiple of 4, at least 16; found {tile}"):
        Decoding(tile).cells(FACTOR, ())


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
