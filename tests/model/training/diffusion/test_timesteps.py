"""Timesteps that are not drawn evenly."""

import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from scipy.stats import chisquare, ks_2samp

from ldmrt.model.training.diffusion.objective import FLOW, Objective
from ldmrt.model.training.diffusion.timesteps import DENSITIES, MODE_SCALE, TIMESTEPS, Importance
from ldmrt.model.training.draws import Draws

COUNT = 100_000


@pytest.mark.parametrize("kind", list(DENSITIES))
def test_densities_have_the_law_of_diffusers(kind: str) -> None:
    """By the Kolmogorov-Smirnov test; the seeds are fixed, so it passes always or never."""
    ours = DENSITIES[kind](Draws(0, range(20_000))).numpy()
    theirs = compute_density_for_timestep_sampling(
        kind, COUNT, logit_mean=0.0, logit_std=1.0, mode_scale=MODE_SCALE, generator=torch.Generator().manual_seed(0)
    ).numpy()
    assert ks_2samp(ours, theirs).pvalue > 0.01


@pytest.mark.parametrize("kind", list(DENSITIES))
def test_drawn_timesteps_are_places_of_the_table(kind: str) -> None:
    objective = Objective.of({"prediction_type": FLOW}, "cpu", timesteps=kind)
    draws = Draws(1, range(4000))
    t, _, _ = objective.draw(torch.zeros(4000, 1, 1, 1), draws)
    assert torch.equal(t, (DENSITIES[kind](draws) * 1000).long())
    assert torch.equal(draws.noted[TIMESTEPS], t)
    assert t.min() >= 0
    assert t.max() < 1000


def taught(count: int = 6) -> tuple[Importance, np.ndarray]:
    """An importance that has seen 14 losses of each timestep, in a mixed order, and all of them."""
    importance, random = Importance(count), np.random.default_rng(0)
    order = random.permutation(np.repeat(np.arange(count), 14))
    losses = random.exponential(size=len(order)) * (1 + order)
    for i in range(0, len(order), 7):
        t, part = torch.from_numpy(order[i : i + 7]), torch.from_numpy(losses[i : i + 7])
        importance.learn(part * importance.correction(t), {TIMESTEPS: t})
    return importance, np.stack([losses[order == t] for t in range(count)])


def test_large_losses_are_drawn_more_often() -> None:
    """By the root of the mean square of the last 10 (Nichol & Dhariwal 2021, equation 18)."""
    importance, losses = taught()
    root = np.sqrt(np.mean(losses[:, -10:] ** 2, axis=1))
    expected = 0.999 * root / root.sum() + 0.001 / len(root)
    np.testing.assert_allclose(importance.probabilities.numpy(), expected, rtol=1e-12)  # float64
    drawn = importance.draw(Draws(2, range(20_000)))
    shares = np.bincount(drawn.numpy(), minlength=6) / 20_000
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / 20_000)  # four standard deviations


def test_the_mean_of_corrected_losses_is_that_of_even_draws() -> None:
    importance, _ = taught()
    expected = importance.probabilities * importance.correction(torch.arange(6))
    torch.testing.assert_close(expected, torch.full((6,), 1 / 6, dtype=torch.float64), rtol=1e-12, atol=0.0)


def test_timesteps_are_drawn_evenly_until_each_was_seen() -> None:
    importance = Importance(4)
    importance.learn(torch.ones(30), {TIMESTEPS: torch.arange(30) % 3})  # the fourth is still unknown
    drawn = importance.draw(Draws(0, range(4000))).numpy()
    assert chisquare(np.bincount(drawn)).pvalue > 0.01
    assert (importance.correction(torch.arange(4)) == 1).all()


def test_what_was_learned_is_kept() -> None:
    importance, _ = taught()
    other = Importance(6)
    other.load_state_dict(importance.state_dict())
    assert torch.equal(other.probabilities, importance.probabilities)
