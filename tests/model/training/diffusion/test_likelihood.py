"""The log-density by the probability flow, against densities that are known."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from ldmrt.model.networks.plain_unet import PlainUNet
from ldmrt.model.training.diffusion.likelihood import bits_per_dimension, log_density
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.errors import NotFinite

VE: dict[str, Any] = {"_class_name": "ScoreSdeVeScheduler", "sampling_eps": 0.0}
LOW = 0.01  # the noise level that images have
SHAPE = (4, 3, 2, 2)
NUMBERS = 12


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def gaussian(covariance: Tensor) -> tuple[Any, Any]:
    """The score of normal images with noise, and their log-density."""

    def noisy(level: Tensor) -> Tensor:
        return covariance + level**2 * torch.eye(len(covariance)).double()

    def score(x: Tensor, level: Tensor) -> Tensor:
        return -torch.linalg.solve(noisy(level[0]), x.flatten(1).T).T.reshape(x.shape)

    def density(x: Tensor) -> Tensor:
        zero = torch.zeros(len(covariance)).double()
        return torch.distributions.MultivariateNormal(zero, noisy(torch.tensor(LOW))).log_prob(x.flatten(1))

    return score, density


def correlated() -> Tensor:
    mixing = randn(NUMBERS, NUMBERS, seed=1) / 2
    return mixing @ mixing.T + 0.05 * torch.eye(NUMBERS).double()


@pytest.mark.parametrize("s", [0.1, 0.5, 2.0])
def test_gaussian_has_its_exact_density(s: float) -> None:
    """Signs give its divergence itself: the Jacobian is a multiple of one."""
    score, density = gaussian(s**2 * torch.eye(NUMBERS).double())
    x = s * randn(*SHAPE)
    # the last level's normal has no part of the data in its variance: 12 / 2 * (2 / 1348)^2 = 1e-5
    assert (log_density(score, x, VE) - density(x)).abs().max() <= 1e-3
    found = log_density(lambda x, level: score(x.double(), level.double()).float(), x.float(), VE)
    assert found.dtype == torch.float32
    assert (found - density(x)).abs().max() <= 1e-3  # roundings of 256 steps of up to 12 times log(134800) / 256


@pytest.mark.slow(minutes=0.05)
def test_correlated_gaussian_has_its_exact_density_by_the_divergence_itself() -> None:
    score, density = gaussian(correlated())
    x = randn(*SHAPE)
    assert (log_density(score, x, VE, probes=None) - density(x)).abs().max() <= 1e-3


def test_mean_over_probes_is_the_divergence() -> None:
    score, density = gaussian(correlated())
    x, copies = randn(1, 3, 2, 2), 400
    generator = torch.Generator().manual_seed(3)
    each = log_density(score, x.expand(copies, 3, 2, 2), VE, steps=32, generator=generator)
    few = log_density(score, x.expand(copies, 3, 2, 2), VE, steps=32, probes=4, generator=generator)
    exact = log_density(score, x, VE, steps=32, probes=None)
    assert each.std() > 0.1  # a probe alone is no more than an estimate
    # deviations of 400: good to 4%, either of them
    assert float(few.std()) == pytest.approx(float(each.std()) / 2, rel=0.15)
    for found in (each, few):
        assert (found.mean() - exact).abs() <= 4 * found.std() / math.sqrt(copies)  # 4 deviations of the mean
    assert (exact - density(x)).abs() <= 0.1  # of 32 steps


def test_a_mixture_has_its_exact_density() -> None:
    """Whose score is not linear."""
    means, deviations, shares = (torch.tensor(v).double() for v in ([-0.9, 0.8], [0.5, 0.4], [0.35, 0.65]))

    def parts(x: Tensor, level: float) -> Tensor:
        scale = (deviations**2 + level**2).sqrt()
        return shares.log() + torch.distributions.Normal(means, scale).log_prob(x[..., None])

    def score(x: Tensor, level: Tensor) -> Tensor:
        towards = (means - x[..., None]) / (deviations**2 + level[0] ** 2)
        return (parts(x, float(level[0])).softmax(-1) * towards).sum(-1)

    x = torch.linspace(-3, 3, 13).double().reshape(-1, 1, 1, 1)
    expected = parts(x, LOW).logsumexp(-1).flatten()
    assert (log_density(score, x, VE) - expected).abs().max() <= 1e-3
    coarse, fine = ((log_density(score, x, VE, steps=n) - expected).abs().max() for n in (32, 64))
    assert math.log2(coarse / fine) > 3  # of fourth order, less what smaller terms take from it


def test_network_of_a_score_sde_has_a_density() -> None:
    """The product with its Jacobian against the Jacobian itself, written out."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("SkipDownBlock2D",), "up_block_types": ("SkipUpBlock2D",)}
    network = PlainUNet.from_config(
        {**blocks, "block_out_channels": (8,), "layers_per_block": 1, "time_embedding_type": "fourier",
         "norm_num_groups": None, "add_attention": False}
    ).double().eval()  # fmt: skip
    x = randn(2, 3, 2, 3)
    config = {**VE, "sigma_max": 5.0}
    found = log_density(network, x, config, steps=2, probes=None)

    def flow(x: Tensor, level: float) -> Tensor:
        return -(level**2) * network(x, torch.full((len(x),), level, dtype=torch.float64))

    def trace(x: Tensor, level: float) -> Tensor:
        jacobian = torch.func.jacrev(lambda one: flow(one[None], level)[0])
        return torch.stack([jacobian(one).reshape(18, 18).trace() for one in x]).detach()

    levels, y, change = [0.01, math.sqrt(0.05), 5.0], x, torch.zeros(2).double()
    with torch.no_grad():
        for low, high in pairwise(levels):
            h, middle = math.log(high / low), math.sqrt(low * high)
            points = [(y, low)]
            for share, level in ((1 / 2, middle), (1 / 2, middle), (1, high)):
                points.append((y + share * h * flow(*points[-1]), level))
            weights = (h / 6, h / 3, h / 3, h / 6)
            change = change + sum(w * trace(*point) for w, point in zip(weights, points, strict=True))
            y = y + sum(w * flow(*point) for w, point in zip(weights, points, strict=True))
    expected = torch.distributions.Normal(0.0, torch.tensor(5.0).double()).log_prob(y).flatten(1).sum(1) + change
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)  # float64, in another order
    assert not any(weight.grad is not None for weight in network.parameters())


def test_bits_are_those_of_a_uniform_density() -> None:
    """256 values that are alike take 8 bits, at any spacing."""
    for spacing in (1 / 256, 2 / 256):
        density = torch.full((2,), -NUMBERS * math.log(256 * spacing)).double()
        torch.testing.assert_close(bits_per_dimension(density, NUMBERS, spacing), torch.full((2,), 8.0).double())


@pytest.mark.parametrize(("more", "words"), [
    ({"steps": 0}, "invalid number of steps or probes; expected at least 1; found 0 steps, 1 probes"),
    ({"probes": 0}, "invalid number of steps or probes"),
    ({"scheduler": {"_class_name": "DDIMScheduler"}}, "ScoreSdeVeScheduler cannot replace DDIMScheduler"),
])  # fmt: skip
def test_what_cannot_be_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(LdmrtError) as refused:
        log_density(lambda x, level: -x, torch.zeros(1, 1, 2, 2), more.pop("scheduler", VE), **more)
    assert words in str(refused.value)


def test_density_that_is_not_finite_is_named() -> None:
    with pytest.raises(NotFinite, match="likelihood: the density is not finite"):
        log_density(lambda x, level: x / 0, torch.zeros(1, 1, 2, 2), VE, steps=2)
