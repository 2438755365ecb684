"""Pictures to latents, whole and in tiles, by encoders that are easy to predict."""

from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.bundle.stages import Space
from ldmrt.runtime.pipeline.autoencoder.decode import Decoding
from ldmrt.runtime.pipeline.autoencoder.encode import encode_image
from ldmrt.runtime.pipeline.autoencoder.tiling import tiled_as_whole
from ldmrt.runtime.samplers.noise.counter import IMAGE, noise
from ldmrt.runtime.samplers.noise.sources import CountedNoise

from ....support.autoencoders import FACTOR, Array, Back, Encoder, Normed, enlarged, latents, pooled

SPACE = Space(4, FACTOR, 2.0)


def colours(many: int = 1) -> Array:
    """Pictures from 0 to 1, each of other colours."""
    return np.concatenate([enlarged(latents(12, 20)) * 0.1 + 0.5 + 0.01 * i for i in range(many)])


def encoded(engines: dict[str, Any], how: Decoding, many: int = 1) -> Array:
    return encode_image(engines, SPACE, how, colours(many), CountedNoise(range(many)), IMAGE)


def test_a_picture_is_drawn_from_its_gaussian() -> None:
    mean = pooled(colours(2) * 2 - 1)
    expected = (mean + np.exp(-mean / 2) * noise([0, 1], IMAGE, (4, 12, 20))) * 2
    np.testing.assert_allclose(encoded({"vae_encoder": Encoder()}, Decoding(), 2), expected, rtol=1e-5, atol=1e-6)


def test_tiles_as_the_pipeline_asks_for_them() -> None:
    encoder = Encoder()
    whole = encoded({"vae_encoder": encoder}, Decoding())
    assert encoder.sides == [(48, 80)]
    np.testing.assert_allclose(encoded({"vae_encoder": encoder}, Decoding(32)), whole, rtol=1e-5, atol=1e-6)
    assert set(encoder.sides[1:]) == {(32, 32)}
    assert encoded({"vae_encoder": encoder}, Decoding(80)).tobytes() == whole.tobytes()  # it fits into one tile
    assert encoder.sides[-1] == (48, 80)


def test_norms_are_shared_where_an_encoder_can() -> None:
    """One pass is each tile for itself; a picture that fits into one tile is encoded whole."""
    parts = {"vae_encoder": Encoder(), "vae_encoder_tile": Normed(encodes=True), "vae_encoder_back": Back()}
    alone: dict[str, Any] = {"vae_encoder": Encoder()}
    for how in (Decoding(32, passes=1), Decoding(80)):
        assert encoded(parts, how).tobytes() == encoded(alone, how).tobytes()
    x = colours() * 2 - 1
    mean = tiled_as_whole(Normed(encodes=True), x, 8, ("sample", "features"), (FACTOR, 1), 3)
    expected = (mean + np.exp(-mean / 2) * noise([0], IMAGE, (4, 12, 20))) * 2
    np.testing.assert_allclose(encoded(parts, Decoding(32)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tile", [None, 32])
def test_what_is_not_finite_is_told_of(tile: int | None) -> None:
    def overflown(made: Array) -> Array:
        with np.errstate(over="ignore"):
            return (made * 1e6).astype(np.float16)

    with pytest.raises(LdmrtError, match=r"vae_encoder: the latents are not finite\n  try: ldmrt verify"):
        encoded({"vae_encoder": Encoder(overflown)}, Decoding(tile))


def test_a_bundle_without_an_encoder() -> None:
    with pytest.raises(LdmrtError, match="vae_encoder: this bundle cannot take an image"):
        encoded({}, Decoding())
