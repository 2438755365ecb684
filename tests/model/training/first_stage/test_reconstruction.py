"""Reconstruction and KL equal their closed forms; together they bound the evidence of a linear autoencoder."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from ldmrt.model.networks.autoencoder import kl_divergence as kl_to_prior
from ldmrt.model.training.diffusion.bound import gaussian_kl
from ldmrt.model.training.first_stage.reconstruction import absolute_error, bernoulli_kl, nll


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_kl_of_known_gaussians() -> None:
    assert kl_to_prior(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)).tolist() == [0.0]
    for mean, deviation, other, other_deviation, expected in (
        (0, 1, 1, 3, 0.709723), (1, 3, 0, 1, 3.401388), (-4, 3.1, -4, 3, 0.001099),
    ):  # fmt: skip
        found = gaussian_kl(
            number(mean), 2 * number(deviation).log(), number(other), 2 * number(other_deviation).log()
        ).item()
        oracle = kl_divergence(Normal(number(mean), number(deviation)), Normal(number(other), number(other_deviation)))
        assert found == pytest.approx(oracle.item(), rel=1e-12)  # float64
        assert found == pytest.approx(expected, abs=6e-7)  # six digits
    # to the prior, of N(1, 9): the mean over an image's elements, float32
    image = kl_to_prior(torch.ones(1, 4, 2, 2), torch.full((1, 4, 2, 2), math.log(9)))
    assert image.item() == pytest.approx(3.401388, abs=1e-6)


def test_kl_of_bernoullis() -> None:
    found = bernoulli_kl(number(0.6), number(0.7)).item()
    assert found == pytest.approx(kl_divergence(Bernoulli(number(0.6)), Bernoulli(number(0.7))).item(), rel=1e-12)
    assert found == pytest.approx(0.0225824, abs=6e-8)


def test_squared_error_with_a_log_variance_is_the_gaussian_likelihood_up_to_a_constant() -> None:
    """With s = log 2v: -log N(x; x', v) = |x - x'|^2 / exp(s) + D / 2 (s + log pi)."""
    torch.manual_seed(0)
    variance, x = 0.3, torch.randn(3, 2, 2, dtype=torch.float64)
    back = torch.randn_like(x)
    s = math.log(2 * variance)
    found = nll(back, x, log_variance=s, summed=True)
    exact = -Normal(back, math.sqrt(variance)).log_prob(x).flatten(1).sum(dim=1)
    torch.testing.assert_close(exact - found, torch.full((3,), 4 / 2 * (math.log(math.pi) - s), dtype=torch.float64))
    torch.testing.assert_close(nll(back, x, log_variance=number(s)) * 4, found)


def test_a_learned_log_variance_is_the_logarithm_of_the_error() -> None:
    x, s = torch.randn(4, 3, 2, 2), torch.zeros((), requires_grad=True)
    error = absolute_error(torch.zeros_like(x), x).mean()
    optimizer = torch.optim.SGD([s], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        nll(torch.zeros_like(x), x, measure="l1", log_variance=s).mean().backward()
        optimizer.step()
    assert s.item() == pytest.approx(error.log().item(), abs=1e-5)  # the minimum of error / exp(s) + s


def test_the_bound_of_a_linear_autoencoder_is_its_evidence_at_the_exact_posterior() -> None:
    """z ~ N(0, 1), x = w z + N(0, v): the evidence is N(0, w w' + v), the posterior normal with known moments."""
    torch.manual_seed(0)
    v, w = 0.2, torch.randn(6, dtype=torch.float64)
    x = torch.randn(6, dtype=torch.float64)
    evidence = MultivariateNormal(torch.zeros_like(w), torch.outer(w, w) + v * torch.eye(6).double()).log_prob(x)
    posterior_variance = 1 / (1 + w @ w / v)
    posterior_mean = posterior_variance * (w @ x) / v
    s = math.log(2 * v)
    points, weights = (torch.tensor(each, dtype=torch.float64) for each in _hermite(20))

    def bound(mean: Tensor, variance: Tensor) -> float:
        """The expectation over z by Gauss and Hermite, exact for a square."""
        z = mean + variance.sqrt() * points
        each = nll(z[:, None] * w, x.expand(20, 6), log_variance=s, summed=True)
        likelihood = -(weights * each).sum() - 6 / 2 * (math.log(math.pi) - s)
        return (likelihood - gaussian_kl(mean, variance.log(), number(0.0), number(0.0)).sum()).item()

    assert bound(posterior_mean, posterior_variance) == pytest.approx(evidence.item(), abs=1e-6)
    for change, scale in ((0.3, 1.0), (0.0, 2.0), (0.0, 0.4), (-0.1, 1.3)):
        assert bound(posterior_mean + change, posterior_variance * scale) < evidence.item() - 1e-3


def _hermite(count: int) -> tuple[list[float], list[float]]:
    import numpy as np

    points, weights = np.polynomial.hermite_e.hermegauss(count)
    return points.tolist(), (weights / weights.sum()).tolist()
