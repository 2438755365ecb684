"""Decoding, whole and in tiles, and what becomes of a picture that is not finite, by decoders easy to predict."""

from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import LdmrtError, NotFinite
from ldmrt.runtime.bundle.stages import Space
from ldmrt.runtime.pipeline.autoencoder.decode import Decoding, decode
from ldmrt.runtime.pipeline.autoencoder.tiling import tiled_as_whole

from ....support.autoencoders import FACTOR, Array, Decoder, Front, Normed, latents


def test_tiles_as_the_pipeline_asks_for_them() -> None:
    space, z, decoder = Space(4, FACTOR, 2.0), latents(12, 20), Decoder()
    engines = {"vae_decoder": decoder}
    whole = decode(engines, space, z, Decoding())
    assert decoder.sides == [(12, 20)]
    assert np.abs(decode(engines, space, z, Decoding(tile=48)).astype(int) - whole).max() <= 1  # a rounding
    assert set(decoder.sides[1:]) == {(12, 12)}
    again = decode(engines, space, z, Decoding(tile=80))
    assert again.tobytes() == whole.tobytes()  # it fits into one tile
    assert decoder.sides[-1] == (12, 20)


@pytest.mark.parametrize("name", ["vae_decoder", "vae_decoder_fp32"])
def test_norms_are_shared_where_a_decoder_can(name: str) -> None:
    """One pass is each tile for itself; a picture that fits into one tile is decoded whole."""
    space, z = Space(4, FACTOR, 1.0), latents(12, 20)
    engines: dict[str, Any] = {"vae_decoder": Decoder(halves), "vae_decoder_fp32": Decoder()}
    z = z * 1e6 if name.endswith("fp32") else z
    alone = decode(engines, space, z, Decoding(tile=32, on_overflow="retry", passes=1))
    whole = decode(engines, space, z, Decoding(tile=80, on_overflow="retry"))
    engines |= {f"{name}_front": Front(), f"{name}_tile": Normed()}
    assert decode(engines, space, z, Decoding(tile=32, on_overflow="retry", passes=1)).tobytes() == alone.tobytes()
    assert decode(engines, space, z, Decoding(tile=80, on_overflow="retry")).tobytes() == whole.tobytes()
    expected = tiled_as_whole(Normed(), z, 8, ("features", "sample"), (1, FACTOR), 3)
    found = decode(engines, space, z, Decoding(tile=32, on_overflow="retry"))
    np.testing.assert_array_equal(found[0].transpose(2, 0, 1), np.rint((expected[0] / 2 + 0.5).clip(0, 1) * 255))


@pytest.mark.parametrize("tile", [0, -16, 12, 50])
def test_impossible_tile(tile: int) -> None:
    with pytest.raises(LdmrtError, match=f"invalid tile; expected a multiple of 4, at least 16; found {tile}"):
        Decoding(tile).cells(FACTOR, ())


def test_impossible_passes() -> None:
    with pytest.raises(LdmrtError, match="invalid passes over the tiles; expected 1 or more; found 0"):
        Decoding(passes=0)


def test_impossible_on_overflow() -> None:
    with pytest.raises(LdmrtError, match="invalid on_overflow; expected stop or retry; found again"):
        Decoding(on_overflow="again")


def halves(drawn: Array) -> Array:
    with np.errstate(over="ignore"):
        return drawn.astype(np.float16)


def test_an_image_of_a_model_in_pixels_is_its_unets() -> None:
    with pytest.raises(NotFinite, match="unet: the image is not finite"):
        decode({}, Space(3, 1, 1.0, codec="none"), np.full((1, 3, 4, 4), np.nan, np.float32), Decoding())


@pytest.mark.parametrize("tile", [None, 16])
def test_overflow(tile: int | None) -> None:
    """Of two pictures the second is too large for halves."""
    space = Space(4, FACTOR, 1.0)
    pair = np.concatenate([latents(8, 8), latents(8, 8) * 1e6])
    narrow, wide = Decoder(halves), Decoder()
    both = {"vae_decoder": narrow, "vae_decoder_fp32": wide}
    with pytest.raises(LdmrtError, match=r"vae_decoder: the image is not finite\n  try: .*--on-overflow retry"):
        decode(both, space, pair, Decoding(tile))
    assert wide.sides == []
    found = decode(both, space, pair, Decoding(tile, "retry"))
    expected = decode({"vae_decoder": Decoder()}, space, pair, Decoding(tile))
    assert len(wide.sides) == (1 if tile is None else 9)  # the second alone
    np.testing.assert_array_equal(found[1], expected[1])
    assert np.abs(found[0].astype(int) - expected[0]).max() <= 1  # a half's rounding
    for how in ("stop", "retry"):
        with pytest.raises(LdmrtError, match="--fp32-decoder"):
            decode({"vae_decoder": narrow}, space, pair, Decoding(tile, how))
    with pytest.raises(LdmrtError, match="try: ldmrt verify"):
        decode({**both, "vae_decoder_fp32": narrow}, space, pair, Decoding(tile, "retry"))
