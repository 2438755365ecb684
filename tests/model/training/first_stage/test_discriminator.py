"""The adversarial part equals its closed forms, and its weight that of two backward passes."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ldmrt.model.training.first_stage.discriminator import (
    LARGEST,
    Discriminator,
    adaptive_weight,
    frozen,
    generator_loss,
    hinge,
    vanilla,
)
from ldmrt.runtime import LdmrtError


def test_the_optimal_discriminator_gives_the_jensen_shannon_divergence() -> None:
    """V = -2 x the vanilla loss; D = p / (p + q) is a logit of log p - log q. N(0, 1) against N(1, 9)."""
    x = torch.linspace(-60, 60, 400_001, dtype=torch.float64)
    one, other = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(1.0, 3.0)
    log_p, log_q = one.log_prob(x), other.log_prob(x)
    p, q, step = log_p.exp(), log_q.exp(), x[1] - x[0]
    logits = (log_p - log_q)[:, None, None, None]
    never = torch.full_like(logits, 1e4)  # a fake that is found surely, or an image: its part of the loss is zero
    real, fake = 2 * vanilla(logits, -never).double(), 2 * vanilla(never, logits).double()
    value = -((p * real + q * fake) * step).sum()
    log_mean = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0, dtype=torch.float64))
    divergence = 0.5 * ((p * (log_p - log_mean) + q * (log_q - log_mean)) * step).sum()
    # 1e-6: the losses are float32
    assert value.item() == pytest.approx((2 * divergence - 2 * torch.log(torch.tensor(2.0))).item(), abs=1e-6)
    assert value.item() == pytest.approx(-0.984097944, abs=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_smallest_images(layers: int) -> None:
    """There is one patch of them, and none of smaller ones."""
    discriminator = Discriminator(layers, width=8)
    side = discriminator.smallest
    assert discriminator(torch.zeros(1, 3, side, side)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        discriminator(torch.zeros(1, 3, side - 1, side - 1))


@pytest.mark.parametrize(
    ("loss", "plain"),
    [
        (hinge, lambda r, f: 0.5 * ((1 - r).clamp(min=0).mean() + (1 + f).clamp(min=0).mean())),
        (vanilla, lambda r, f: -0.5 * (torch.sigmoid(r).log().mean() + (1 - torch.sigmoid(f)).log().mean())),
    ],
)
def test_losses_equal_their_formulas(loss: Callable, plain: Callable) -> None:
    torch.manual_seed(0)
    real, fake = torch.randn(2, 5, 1, 3, 3)
    expected = torch.stack([plain(a, b) for a, b in zip(real, fake, strict=True)])
    torch.testing.assert_close(loss(real, fake), expected, rtol=1e-6, atol=1e-7)  # float32, sums of 9
    torch.testing.assert_close(generator_loss(fake), torch.stack([-one.mean() for one in fake]))


def test_adaptive_weight_equals_two_backward_passes() -> None:
    torch.manual_seed(0)
    last, discriminator, x = nn.Conv2d(4, 3, 3, padding=1), Discriminator(2, 8), torch.randn(2, 3, 16, 16)
    inner = torch.randn(2, 4, 16, 16)
    gradients = []
    for loss_of in (lambda back: (back - x).abs().mean(), lambda back: -discriminator(back).mean()):
        last.zero_grad()
        loss_of(last(inner)).backward()
        gradients.append(last.weight.grad.norm().item())
    back = last(inner)
    found = adaptive_weight((back - x).abs().mean(), generator_loss(discriminator(back)).mean(), last.weight)
    assert not found.requires_grad
    assert found.item() == pytest.approx(gradients[0] / (gradients[1] + 1e-4), rel=1e-6)  # float32


def test_a_loss_scale_keeps_the_adaptive_weight() -> None:
    """To the bit, as a power of two; and gradients that fp16 rounds to zero count with it."""
    weight = torch.tensor([0.3, -1.7], requires_grad=True)
    parts = (weight.square() * 1.3).sum(), weight.exp().sum()
    assert torch.equal(adaptive_weight(*parts, weight), adaptive_weight(*parts, weight, 2.0**16))
    half = torch.ones(2, dtype=torch.float16)

    def weighed(scale: float) -> float:
        (nll, generator) = ((weight.half() * half).float().sum() * factor for factor in (1e-8, 2e-8))
        return adaptive_weight(nll, generator, weight, scale).item()

    assert weighed(1.0) == 0
    expected = 1e-8 * 2**0.5 / (2e-8 * 2**0.5 + 1e-4)
    assert weighed(2.0**16) == pytest.approx(expected, rel=1e-3)  # fp16


@pytest.mark.parametrize("large", [(3.0, 0.5), (0.5, 3.0), (3.0, 3.0)])
def test_an_overflow_of_either_gradient_is_no_weight(large: tuple[float, float]) -> None:
    """So that the loss is not finite, and the scale becomes smaller."""
    weight = torch.ones(2, requires_grad=True)
    parts = [(weight.half() * torch.ones(2, dtype=torch.float16)).sum().float() * factor for factor in large]
    assert torch.isfinite(adaptive_weight(*parts, weight))
    assert torch.isnan(adaptive_weight(*parts, weight, 2.0**16))


def test_adaptive_weight_is_limited() -> None:
    weight = torch.ones(2, requires_grad=True)
    assert adaptive_weight(1e6 * weight.sum(), 0 * weight.sum(), weight).item() == LARGEST


def test_a_sample_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    discriminator, x = Discriminator(3, 8), torch.randn(3, 3, 32, 32)
    assert discriminator(x).shape == (3, 1, 2, 2)
    # 1e-5: kernels may sum in another order for another number of samples
    torch.testing.assert_close(discriminator(x)[:1], discriminator(x[:1]), rtol=1e-5, atol=1e-6)


def test_a_frozen_discriminator_gives_gradients_to_images_alone() -> None:
    discriminator, x = Discriminator(1, 8), torch.zeros(1, 3, 8, 8, requires_grad=True)
    with frozen(discriminator):
        loss = discriminator(x).sum()
    loss.backward()
    assert x.grad is not None
    assert all(weight.grad is None and weight.requires_grad for weight in discriminator.parameters())


@pytest.mark.parametrize(("layers", "width"), [(0, 8), (1, 12), (1, 0)])
def test_an_impossible_discriminator_is_refused(layers: int, width: int) -> None:
    with pytest.raises(LdmrtError, match="unsupported discriminator; expected layers, width 8"):
        Discriminator(layers, width)
