"""The variational bound: closed forms, Bayes' rule on a grid, and the terms of improved-diffusion."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ldmrt.model.training.diffusion.bound import (
    KINDS,
    Chain,
    bits,
    bound_of,
    density_log_likelihood,
    gaussian_kl,
    hybrid_losses,
    level_log_likelihood,
    prior,
    terms,
)
from ldmrt.model.training.diffusion.objective import Objective, noised
from ldmrt.runtime import LdmrtError

LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
DATA = 1 / 3  # variance of the data of the exact denoiser


@pytest.mark.parametrize(
    ("scheduler", "square", "expected"), [(LINEAR, 1 / 3, 9.705e-06), (SD, 1.0, 3.369e-03), (COSINE, 1.0, 1.752e-09)]
)
def test_what_is_left_of_the_image_after_the_last_step(scheduler: dict, square: float, expected: float) -> None:
    """L_T in bits a number, where the mean square of the data is `square` (Ho et al. 2020 report about 1e-5)."""
    x0 = torch.full((1, 1, 1, 1), square**0.5, dtype=torch.float64)
    assert float(bits(prior(Chain.of(scheduler), x0))) == pytest.approx(expected, rel=5e-4)  # the digits given


@pytest.mark.parametrize("t", [1, 2, 40, 500, 999])
def test_posterior_is_bayes_rule(t: int) -> None:
    """On a grid of 2e6 points: q(x_{t-1} | x_t, x0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x0)."""
    chain, x0, x = Chain.of(LINEAR), 0.4, -0.3
    beta, before = float(chain.beta[t]), float(chain.before[t])
    arguments = (torch.tensor([[value]], dtype=torch.float64) for value in (x0, x))
    mean = float(chain.posterior_mean(*arguments, torch.tensor([t])))
    variance = float(chain.posterior_variance[t])
    places = mean + variance**0.5 * np.linspace(-12, 12, 2_000_001)
    log = -((x - math.sqrt(1 - beta) * places) ** 2) / (2 * beta)
    log -= (places - math.sqrt(before) * x0) ** 2 / (2 * (1 - before))
    weights = np.exp(log - log.max())
    weights /= weights.sum()
    found = float((weights * places).sum())
    assert found == pytest.approx(mean, rel=1e-12, abs=1e-14)  # sums of 2e6 numbers in float64
    assert float((weights * (places - found) ** 2).sum()) == pytest.approx(variance, rel=1e-11)


def test_divergence_of_gaussians() -> None:
    """Closed forms that books print."""

    def kl(mean: float, deviation: float, other: float, other_deviation: float) -> float:
        values = (mean, 2 * math.log(deviation), other, 2 * math.log(other_deviation))
        return float(gaussian_kl(*(torch.tensor(value, dtype=torch.float64) for value in values)))

    assert kl(0, 1, 0, 1) == 0
    assert kl(0, 1, 1, 3) == pytest.approx(math.log(3) + 2 / 18 - 0.5, abs=1e-12)
    assert kl(1, 3, 0, 1) == pytest.approx(-math.log(3) + 10 / 2 - 0.5, abs=1e-12)
    assert kl(-4, 3.1, -4, 3) == pytest.approx(0.001099, abs=5e-7)


@pytest.mark.parametrize("mean", [-1.2, -0.3, 0.0, 0.9])
@pytest.mark.parametrize("deviation", [0.4, 1.0, 7.0])
def test_levels_sum_to_one(mean: float, deviation: float) -> None:
    """With deviations at which no level is less likely than the least."""
    x = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    mean, log_variance = (torch.full_like(x, value) for value in (mean, 2 * math.log(deviation)))
    assert abs(float(level_log_likelihood(x, mean, log_variance).exp().sum()) - 1) < 1e-14


@pytest.mark.parametrize(("kind", "expected"), [("fixed_large", 0.87030), ("fixed_small", 1.32819)])
def test_bound_of_the_exact_denoiser(kind: str, expected: float) -> None:
    """Of x0 ~ N(0, 1/3), whose entropy is 0.86963 nats: a thousand steps lose little with the right variance."""
    assert exact_bound(1000, kind) == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize(("steps", "gap"), [(100, 0.00670), (10000, 0.00007)])
def test_more_steps_lose_less(steps: int, gap: float) -> None:
    entropy = 0.5 * math.log(2 * math.pi * math.e * DATA)
    assert exact_bound(steps, "fixed_large") - entropy == pytest.approx(gap, abs=5e-6)


def exact_bound(steps: int, kind: str) -> float:
    """L_T + sum L_t + L_0 of continuous numbers, in expectation; a chain of other lengths has betas in proportion."""
    scale = 1000 / steps
    chain = Chain.of(
        {"beta_schedule": "linear", "beta_start": 1e-4 * scale, "beta_end": 0.02 * scale, "num_train_timesteps": steps}
    )
    t = torch.arange(steps)
    left = DATA * (1 - chain.abar) / (chain.abar * DATA + 1 - chain.abar)  # variance of x0 given x_t
    # The error of the mean squared is that of x0 times its coefficient, which `terms` applies to x0 - believed.
    error, zero = left.sqrt()[:, None, None, None], torch.zeros(steps, 1, 1, 1, dtype=torch.float64)
    inner = terms(chain, error, zero, t, zero, kind)[1:].sum()
    beta = chain.beta[0]  # the variance of the last step to numbers that are not of levels
    first = 0.5 * (math.log(2 * math.pi * beta) + left[0] / beta)
    last = prior(chain, torch.full((1, 1, 1, 1), DATA**0.5, dtype=torch.float64))
    return float(last + inner + first)


# What improved_diffusion.GaussianDiffusion._vb_terms_bpd returned at commit 1bc7bbb, in bits, for the numbers of
# `case` with ModelMeanType.START_X and without clipping.
TIMES = [0, 0, 1, 2, 10, 300, 999]
THEIRS = {
    ("linear", "fixed_small"): [
        30.5603896, 29.0821878, 25.6123361, 11.9905882, 0.739414209, 4.69534721e-05, 1.77802616e-07
    ],
    ("linear", "fixed_large"): [
        30.5603896, 29.0821878, 11.8219764, 7.40489274, 0.646105905, 5.24852716e-05, 5.81996072e-09
    ],
    ("linear", "learned_range"): [
        29.8965466, 27.7067567, 16.5762469, 9.66831307, 0.698561454, 4.88946973e-05, 5.82001294e-09
    ],
    ("cosine", "fixed_small"): [
        33.9621598, 33.7839238, 60.0486552, 28.5895637, 2.03033297, 0.000199498331, 1.71435426e-08
    ],
    ("cosine", "fixed_large"): [
        33.9621598, 33.7839238, 28.5172676, 18.1225871, 1.78355743, 0.000211164587, -2.5852161e-08
    ],
    ("cosine", "learned_range"): [
        32.8376409, 31.4716139, 39.571938, 23.3429606, 1.92370688, 0.000203551925, 1.71440998e-08
    ],
}  # fmt: skip
PRIORS = {"linear": 9.529213902759793e-06, "cosine": 5.734691387327334e-10}


def approximate(x: Tensor) -> Tensor:
    """The normal distribution as improved-diffusion takes it, which is 2% off in logarithms of far tails."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def case(chain: Chain) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Images of 256 levels, the same with noise, their timesteps, what a network sees in them, and its variance."""
    random, shape = np.random.Generator(np.random.Philox(key=7)), (len(TIMES), 3, 4, 4)
    x0 = np.rint(random.random(shape) * 255) / 127.5 - 1
    eps = random.standard_normal(shape)
    believed = np.clip(x0 + 0.1 * random.standard_normal(shape), -1, 1)
    v = random.uniform(-1, 1, shape)
    t = torch.tensor(TIMES)
    first, noise, seen, share = (torch.from_numpy(value) for value in (x0, eps, believed, v))
    abar = chain.abar[t][:, None, None, None]
    return first, abar.sqrt() * first + (1 - abar).sqrt() * noise, t, seen, share


@pytest.mark.parametrize(("name", "kind"), list(THEIRS))
def test_terms_are_those_of_improved_diffusion(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.special, "ndtr", approximate)
    chain = Chain.of({"linear": LINEAR, "cosine": COSINE}[name])
    x0, x, t, believed, v = case(chain)
    found, expected = bits(terms(chain, x0, x, t, believed, kind, v)).numpy(), np.array(THEIRS[name, kind])
    # Theirs look up their tables in float32: 1e-6 of a term, and of 1 where it is a difference of numbers near 1.
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=3e-7)
    # theirs, in float32, is a difference of numbers near 1
    assert float(bits(prior(chain, x0))[0]) == pytest.approx(PRIORS[name], rel=1e-4)


def test_hybrid_loss_is_improved_diffusions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What GaussianDiffusion.training_losses returned (RESCALED_MSE, EPSILON, LEARNED_RANGE), and its gradients."""
    monkeypatch.setattr(torch.special, "ndtr", approximate)
    random, times = np.random.Generator(np.random.Philox(key=8)), [0, 1, 5, 300, 999]
    shape = (len(times), 3, 4, 4)
    x0 = torch.from_numpy(np.rint(random.random(shape) * 255) / 127.5 - 1)
    eps, base = (torch.from_numpy(random.standard_normal(shape)) for _ in range(2))
    weights = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.9, 0.1, 0.3)]
    chain, t = Chain.of(COSINE), torch.tensor(times)
    objective = Objective("epsilon", chain.abar.sqrt(), (1 - chain.abar).sqrt(), torch.arange(len(chain.abar)))
    x = noised(x0, chain.abar[t], eps)
    predicted, v = weights[0] * eps + weights[1] * base, torch.tanh(weights[2] * x)
    simple = objective.losses(predicted, x0, t, eps)
    bound = hybrid_losses(chain, "epsilon", x0, x, t, predicted, v)
    # Theirs look up their tables in float32.
    assert bound.tolist() == pytest.approx(
        [0.9469708, 0.0540690829, 0.00933840005, 0.000118377624, 18.5200009], rel=2e-6, abs=1e-8
    )
    assert simple.tolist() == pytest.approx(
        [0.0221315163, 0.0203806106, 0.0246255576, 0.0209529169, 0.0256998431], rel=1e-7
    )
    gradients = torch.autograd.grad((simple + bound).mean(), weights)
    expected = [-0.252267547, 0.202894231, 0.000674775304]
    assert [float(value) for value in gradients] == pytest.approx(expected, rel=2e-6)


def test_learned_range_ends_at_the_fixed_variances() -> None:
    chain, t = Chain.of(LINEAR), torch.tensor([1, 5, 999])
    for end, kind in ((-1.0, "fixed_small"), (1.0, "fixed_large")):
        learned = chain.log_variance("learned_range", t, torch.full((3, 2, 1, 1), end, dtype=torch.float64))
        assert torch.equal(learned, chain.log_variance(kind, t).expand(3, 2, 1, 1))


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_unknown_variance_is_refused(kind: str) -> None:
    with pytest.raises(LdmrtError, match=f"unsupported variance; expected {KINDS[0]}, .*; found {kind}"):
        Chain.of(LINEAR).log_variance(kind, torch.tensor([0]))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_bound_of_a_network_is_the_exact_denoisers(kind: str) -> None:
    """Its terms are means over images and noise, within five standard errors of the expectations."""
    scheduler = {**LINEAR, "num_train_timesteps": 60, "beta_end": 0.3, "prediction_type": kind}
    scheduler["variance_type"] = "fixed_large"
    chain = Chain.of(scheduler)
    x0 = torch.randn((500, 2, 3, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * DATA**0.5

    def network(x: Tensor, t: Tensor) -> Tensor:
        abar = chain.abar[t][:, None, None, None]
        believed = abar.sqrt() * DATA / (abar * DATA + 1 - abar) * x
        eps = (x - abar.sqrt() * believed) / (1 - abar).sqrt()
        return {
            "epsilon": eps,
            "v_prediction": abar.sqrt() * eps - (1 - abar).sqrt() * believed,
            "sample": believed,
        }[kind]

    last, found = bound_of(network, x0, scheduler)
    assert last.shape == (500,)
    assert found.shape == (500, 60)
    t = torch.arange(60)
    left = DATA * (1 - chain.abar) / (chain.abar * DATA + 1 - chain.abar)
    zero = torch.zeros(60, 1, 1, 1, dtype=torch.float64)
    expected = terms(chain, left.sqrt()[:, None, None, None], zero, t, zero, "fixed_large")
    errors = found.std(dim=0) / 500**0.5
    assert ((found.mean(dim=0) - expected)[1:].abs() < 5 * errors[1:] + 1e-12).all()


def test_bound_of_latents_is_a_densitys() -> None:
    """L_0 of the exact denoiser in closed form, within five standard errors; parts of the images have their noise."""
    scheduler = {**LINEAR, "num_train_timesteps": 4, "beta_start": 0.1, "beta_end": 0.3, "prediction_type": "sample"}
    chain = Chain.of(scheduler)
    x0 = torch.randn((500, 2, 3, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64) * DATA**0.5

    def network(x: Tensor, t: Tensor) -> Tensor:
        abar = chain.abar[t][:, None, None, None]
        return abar.sqrt() * DATA / (abar * DATA + 1 - abar) * x

    last, found = bound_of(network, x0, scheduler, levels=False)
    left = DATA * (1 - chain.abar[0]) / (chain.abar[0] * DATA + 1 - chain.abar[0])
    variance = chain.log_variance("fixed_small", torch.tensor([0])).exp().squeeze()
    expected = 0.5 * (torch.log(2 * math.pi * variance) + left / variance)
    error = found[:, 0].std() / 500**0.5
    assert abs(found[:, 0].mean() - expected) < 5 * error < 0.05  # nats
    inner = bound_of(network, x0, scheduler)[1]
    assert torch.equal(found[:, 1:], inner[:, 1:])
    parts = [bound_of(network, x0[a:b], scheduler, first=a, levels=False) for a, b in ((0, 3), (3, 500))]
    for part, whole in zip(zip(*parts, strict=True), (last, found), strict=True):
        torch.testing.assert_close(torch.cat(part), whole, rtol=1e-13, atol=0.0)  # order of sums in float64
    same = bound_of(network, x0, {**scheduler, "variance_type": "fixed_small_log"}, levels=False)[1]
    assert torch.equal(same, found)


def test_density_of_a_gaussian_is_torchs() -> None:
    x, mean, log_variance = torch.randn(
        (3, 2, 4, 1, 1), generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    expected = torch.distributions.Normal(mean, (log_variance / 2).exp()).log_prob(x)
    torch.testing.assert_close(density_log_likelihood(x, mean, log_variance), expected, rtol=1e-13, atol=1e-13)


def test_bound_of_a_network_that_learns_its_variance() -> None:
    scheduler = {**LINEAR, "num_train_timesteps": 5, "variance_type": "learned_range", "prediction_type": "sample"}
    x0 = torch.rand(2, 3, 4, 4).mul(255).round() / 127.5 - 1
    fixed = bound_of(lambda x, t: x, x0, {**scheduler, "variance_type": "fixed_small"})
    learned = bound_of(lambda x, t: torch.cat([x, -torch.ones_like(x)], dim=1), x0, scheduler)
    for one, other in zip(fixed, learned, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0.0)
    for changed, problem in (
        ({"num_train_timesteps": 1}, "too few timesteps; expected at least 2; found 1"),
        ({"prediction_type": "epsilon", "rescale_betas_zero_snr": True}, "cannot be combined with prediction_type"),
        ({}, "another number of channels than variance_type learned_range asks for; expected 6; found 3"),
    ):
        with pytest.raises(LdmrtError, match=problem):
            bound_of(lambda x, t: x, x0, {**scheduler, **changed})
    with pytest.raises(LdmrtError, match="unsupported prediction_type; expected epsilon, v_prediction, sample"):
        bound_of(lambda x, t: x, x0, {**scheduler, "prediction_type": "flow_prediction"})


def test_a_chain_is_on_one_device() -> None:
    """The device without numbers stands for a GPU: what mixes devices fails on it."""
    chain, t = Chain.of(LINEAR, "meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    x = torch.zeros(2, 3, 4, 4, dtype=torch.float64, device="meta")
    assert hybrid_losses(chain, "epsilon", x, x, t, x, x).device.type == "meta"
