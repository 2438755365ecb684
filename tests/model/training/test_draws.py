"""Random numbers of samples: the same whatever a sample is computed beside, and each of its own."""

import numpy as np
import pytest
import torch
from scipy import stats

from ldmrt.model.training.draws import Draws

SHAPE = (4, 8, 8)


def test_a_sample_has_its_numbers_in_any_batch() -> None:
    whole = Draws(3, range(8))
    parts = [Draws(3, range(4)), Draws(3, range(4, 8))]
    interleaved = [Draws(3, range(rank, 8, 2)) for rank in range(2)]  # as two processes would
    for draw in (
        lambda draws: draws.normal("noise", SHAPE),
        lambda draws: draws.uniform("share"),
        lambda draws: draws.integers("timesteps", 1000),
    ):
        expected = draw(whole)
        assert torch.equal(torch.cat([draw(part) for part in parts]), expected)
        assert torch.equal(torch.stack([draw(part) for part in interleaved], 1).flatten(0, 1), expected)
        assert torch.equal(draw(whole), expected)  # and asked again
        assert torch.equal(draw(whole.of(torch.arange(8) % 3 == 0)), expected[::3])


def test_every_seed_sample_and_purpose_has_numbers_of_its_own() -> None:
    drawn = [
        Draws(seed, [sample]).normal(purpose, SHAPE).numpy().tobytes()
        for seed in (0, 1, 2**32)
        for sample in (0, 1, 2**40)
        for purpose in ("noise", "latents")
    ]
    assert len(set(drawn)) == 18


def test_numbers_are_those_of_philox_at_the_samples_place() -> None:
    """Its counter is the sample's number times 2**128, so no two samples share numbers."""
    purpose = 0x3C2E7B1A  # any stream
    key = np.array([7, purpose], np.uint64)
    one = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 5, 0])).random(4)
    other = np.random.Philox(key=key)
    for _ in range(5):
        other = other.jumped()  # 2**128 numbers ahead
    assert np.array_equal(np.random.Generator(other).random(4), one)


@pytest.mark.parametrize(("purpose", "law"), [("normal", "norm"), ("uniform", "uniform")])
def test_laws(purpose: str, law: str) -> None:
    draws = Draws(0, range(4000))
    found = draws.normal("noise", ()) if purpose == "normal" else draws.uniform("share")
    assert stats.kstest(found.double().numpy(), law).pvalue > 0.01


def test_integers_are_even_and_noted() -> None:
    draws = Draws(0, range(4000))
    t = draws.integers("timesteps", 10)
    assert draws.noted["timesteps"] is t
    assert stats.chisquare(np.bincount(t.numpy(), minlength=10)).pvalue > 0.01
