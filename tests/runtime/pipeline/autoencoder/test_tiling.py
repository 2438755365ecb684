"""Tiles that overlap: how much each counts, and what networks make of them, both ways."""

from itertools import pairwise

import numpy as np
import pytest

from ldmrt.runtime.pipeline.autoencoder.tiling import fades, tiled, tiled_as_whole

from ....support.autoencoders import FACTOR, Decoder, Encoder, Normed, latents

DECODES, ENCODES = (1, FACTOR), (FACTOR, 1)
ROUNDING = 4 * 2.0**-24  # of the largest value: shares, and their sum


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


@pytest.mark.parametrize("cells", [4, 7, 8, 16])
@pytest.mark.parametrize("length", [3, 8, 9, 15, 16, 17, 31, 64])
def test_even_tiles_are_as_many_no_larger_and_share_as_much(length: int, cells: int) -> None:
    tiles, even = fades(length, cells, FACTOR), fades(length, cells, FACTOR, even=True)
    side, total = len(even[0][1]) // FACTOR, np.zeros(length * FACTOR)
    assert len(even) == len(tiles)
    assert side <= len(tiles[0][1]) // FACTOR
    for start, share in even:
        total[start * FACTOR : start * FACTOR + len(share)] += share
    np.testing.assert_allclose(total, 1, rtol=3 * 2.0**-24)
    starts = [start for start, _ in even]
    assert starts[-1] + side == length
    shared = [start + side - after for start, after in pairwise(starts)]
    assert all(max(cells // 4, min(cells // 2, 8)) <= each < side for each in shared)


def test_even_tiles_of_a_large_image() -> None:
    assert [(start, len(share)) for start, share in fades(128, 64, 1, even=True)] == [(0, 54), (37, 54), (74, 54)]


@pytest.mark.parametrize("size", [(8, 20), (19, 8), (33, 17)])
def test_decoder_that_looks_at_one_latent_draws_the_same_in_tiles(size: tuple[int, int]) -> None:
    z, decoder = latents(*size), Decoder()
    found = tiled(decoder, z, 8, decoder.names, DECODES)
    assert set(decoder.sides) == {(8, 8)}
    whole = Decoder()(latent_sample=z)["sample"]
    np.testing.assert_allclose(found, whole, atol=ROUNDING * np.abs(whole).max())


@pytest.mark.parametrize("size", [(8, 20), (19, 8), (33, 17)])
def test_encoder_that_looks_at_one_latents_pixels_says_the_same_in_tiles(size: tuple[int, int]) -> None:
    x, encoder = Decoder()(latent_sample=latents(*size))["sample"], Encoder()
    found = tiled(encoder, x, 8, encoder.names, ENCODES)
    assert set(encoder.sides) == {(8 * FACTOR, 8 * FACTOR)}
    whole = Encoder()(sample=x)["latent_parameters"]
    np.testing.assert_allclose(found, whole, atol=ROUNDING * np.abs(whole).max())


def test_what_norms_do_to_a_tile_leaves_no_seam() -> None:
    """A decoder whose tiles are all lighter or darker by much: neighbouring pixels differ no more than by fading."""
    many = iter(range(100))
    decoder = Decoder(lambda drawn: drawn * 0 + next(many) % 2)
    found = tiled(decoder, np.zeros((1, 4, 40, 40), np.float32), 16, decoder.names, DECODES)
    assert (found.min(), found.max()) == (0, 1)
    steepest = max(np.abs(np.diff(found, axis=axis)).max() for axis in (2, 3))
    assert steepest <= 1.01 / (16 // 4 * FACTOR)  # from one to the other over a quarter of a tile


@pytest.mark.parametrize("encodes", [False, True])
def test_tiles_are_the_whole_after_as_many_passes_as_norms(encodes: bool) -> None:
    """The first finds the first norm's statistics, the next the second's, the last draws."""
    x = latents(12, 20) + np.linspace(-2, 2, 20, dtype=np.float32)  # so that no tile is like another
    x = Decoder()(latent_sample=x)["sample"] if encodes else x
    names, factors = (("sample", "features"), ENCODES) if encodes else (("features", "sample"), DECODES)
    network = Normed(encodes)
    off = [
        np.abs(tiled_as_whole(network, x, 8, names, factors, passes) - network.whole(x)).max()
        for passes in (1, 2, 3, 4)
    ]
    assert min(off[:2]) > 0.005
    assert max(off[2:]) < 1e-5  # float32 numbers, and shares that are rounded
