"""Noise is a function of seed, stream and place."""

import numpy as np
import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.samplers.noise.counter import FIRST, noise

SHAPE = (4, 8, 8)


def test_same_seed_same_bytes() -> None:
    assert noise([7, 8], 3, SHAPE).tobytes() == noise([7, 8], 3, SHAPE).tobytes()
    assert noise([7], FIRST, SHAPE).dtype == np.float32


def test_seed_means_the_same_in_every_release() -> None:
    """Written down once: a change here changes every picture that anybody remembers a seed of."""
    found = noise([0, 2**64 - 1], 1, (1, 1, 3))
    expected = [[-1.431463, 1.6707169, -0.40272397], [0.47170085, 0.55934829, 0.52660161]]
    np.testing.assert_allclose(found.reshape(2, 3), expected, rtol=1e-6)  # they are printed with 8 digits


@pytest.mark.parametrize("batch", [[5], [5, 6, 7], [9, 5], [5, 5]])
def test_picture_of_a_batch_is_its_single_twin(batch: list[int]) -> None:
    together = noise(batch, 2, SHAPE)
    assert together.shape == (len(batch), *SHAPE)
    for picture, seed in zip(together, batch, strict=True):
        assert picture.tobytes() == noise([seed], 2, SHAPE)[0].tobytes()


def test_order_of_drawing_does_not_matter() -> None:
    streams = list(range(6))
    forward = {stream: noise([1], stream, SHAPE).tobytes() for stream in streams}
    backward = {stream: noise([1], stream, SHAPE).tobytes() for stream in reversed(streams)}
    assert forward == backward


def test_seeds_and_streams_are_unrelated() -> None:
    drawn = [noise([seed], stream, (4096,))[0] for seed in (0, 1, 2**63) for stream in (FIRST, 1, 2)]
    related = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(related).max() < 5 / np.sqrt(4096)  # five standard deviations of unrelated numbers


def test_noise_is_unit_normal() -> None:
    count = 400_000
    values = noise([123], FIRST, (count,))[0].astype(np.float64)
    # moments of a unit normal, within five standard deviations: 1, 2 and 96 are the variances of x, x^2, x^4
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
        assert abs((values**power).mean() - mean) < 5 * np.sqrt(variance / count)


@pytest.mark.parametrize("seed", [-1, 2**64, 10**30])
def test_impossible_seed_is_refused(seed: int) -> None:
    with pytest.raises(LdmrtError, match=rf"invalid seed; expected 0 to 2\*\*64 - 1; found {seed}"):
        noise([0, seed], FIRST, SHAPE)
