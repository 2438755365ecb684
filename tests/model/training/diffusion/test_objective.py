"""What a network learns, beside diffusers' training scripts, and identities between predictions."""

from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers.training_utils import compute_snr
from torch import Tensor
from torch.nn.functional import mse_loss

from ldmrt.model.training.diffusion.objective import MIN_SNR, TARGETS, Objective, alpha_and_sigma
from ldmrt.model.training.draws import Draws

SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SHAPE = (64, 4, 8, 6)
GAMMA = 5.0
KINDS = pytest.mark.parametrize("kind", list(TARGETS))


def numbers(seed: int, kind: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=kind)


@KINDS
def test_weighted_loss_is_that_of_diffusers_scripts(kind: str) -> None:
    """The lines are those of `train_text_to_image.py`."""
    scheduler = diffusers.DDPMScheduler(prediction_type=kind, **SCHEDULER)
    ours = Objective.of(SCHEDULER | {"prediction_type": kind}, "cpu", snr_gamma=GAMMA)
    # theirs is a product of 1000 numbers in float32, ours in float64
    torch.testing.assert_close(ours.abar, scheduler.alphas_cumprod, rtol=2e-5, atol=0.0)
    objective = replace(ours, abar=scheduler.alphas_cumprod)
    x0, predicted = numbers(0), numbers(1)
    t, eps, x = objective.draw(x0, Draws(0, range(64)))
    torch.testing.assert_close(x, scheduler.add_noise(x0, eps, t), rtol=1e-6, atol=1e-6)  # float32
    target = {"epsilon": eps, "v_prediction": scheduler.get_velocity(x0, eps, t), "sample": x0}[kind]
    snr = compute_snr(scheduler, t)
    weights = torch.stack([snr, GAMMA * torch.ones_like(t)], dim=1).min(dim=1)[0]
    weights = {"epsilon": weights / snr, "v_prediction": weights / (snr + 1), "sample": weights}[kind]
    plain = mse_loss(predicted.float(), target.float(), reduction="none").mean(dim=[1, 2, 3])
    found = objective.losses(predicted, x0, t, eps)
    torch.testing.assert_close(found, plain * weights, rtol=1e-6, atol=0.0)  # float32 sums in another order
    unweighted = replace(objective, snr_gamma=None).losses(predicted, x0, t, eps)
    torch.testing.assert_close(unweighted, plain, rtol=1e-6, atol=0.0)


def test_predictions_that_say_the_same_have_the_same_loss() -> None:
    """In float64: |d eps|^2 = snr |d x0|^2 and |d v|^2 = (snr + 1) |d x0|^2 at a fixed x_t."""
    abar = Objective.of(SCHEDULER, "cpu").abar.double()
    x0, believed, draws = numbers(0, torch.float64), numbers(1, torch.float64), Draws(0, range(64))
    losses = {}
    for kind in TARGETS:
        objective = Objective(kind, abar, snr_gamma=GAMMA)
        t, eps, x = objective.draw(x0, draws)
        alpha, sigma = alpha_and_sigma(abar[t])
        said = TARGETS[kind](alpha, sigma, believed, (x - alpha * believed) / sigma)
        losses[kind] = objective.losses(said, x0, t, eps.double())
    snr = abar[t] / (1 - abar[t])
    expected = snr.clamp(max=GAMMA) * (believed - x0).square().mean(dim=(1, 2, 3))
    for found in losses.values():
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=0.0)  # eps is a difference of numbers near it


def test_a_timestep_without_signal_counts_nothing() -> None:
    abar = Objective.of(SCHEDULER | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, "cpu").abar
    assert abar[-1] == 0
    assert MIN_SNR["v_prediction"](abar / (1 - abar), GAMMA)[-1] == 0


def test_offset_noise_is_one_number_for_each_channel() -> None:
    """Its covariance over the pixels of a channel is I + s^2 1 1^T."""
    objective, x0 = Objective.of(SCHEDULER, "cpu", offset_noise=0.5), torch.zeros(4000, 2, 3, 3)
    _, eps, _ = objective.draw(x0, Draws(0, range(4000)))
    pixels = eps.permute(1, 2, 3, 0).reshape(18, 4000).double()
    same = torch.kron(torch.eye(2), torch.ones(9, 9))
    # four standard deviations of a covariance of 4000 pairs: its largest variance is 2 * 1.25^2
    assert (pixels.cov() - (torch.eye(18) + 0.25 * same)).abs().max() < 4 * (2 * 1.25**2 / 4000) ** 0.5


def test_perturbed_input_is_not_what_is_predicted() -> None:
    plain, perturbed = (Objective.of(SCHEDULER, "cpu", input_perturbation=p) for p in (None, 0.1))
    x0, draws = numbers(0), Draws(0, range(64))
    (t, eps, x), (same_t, same_eps, other) = plain.draw(x0, draws), perturbed.draw(x0, draws)
    assert torch.equal(t, same_t)
    assert torch.equal(eps, same_eps)
    _, sigma = alpha_and_sigma(plain.abar[t])
    more = (other - x) / sigma
    assert abs(float(more.std()) - 0.1) < 0.003  # 12,288 numbers: four standard deviations
    assert abs(float((more * eps).mean())) < 0.004
