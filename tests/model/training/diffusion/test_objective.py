"""What a network learns, beside diffusers' training scripts, and identities between predictions."""

from dataclasses import replace
from functools import partial

import diffusers
import pytest
import torch
from diffusers.training_utils import compute_snr
from torch import Tensor
from torch.nn.functional import mse_loss

from ldmrt.model.training.diffusion.objective import FLOW, TARGETS, Objective
from ldmrt.model.training.diffusion.weighting import Weight, debiased, min_snr
from ldmrt.model.training.draws import Draws
from ldmrt.runtime import LdmrtError

SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SHAPE = (64, 4, 8, 6)
GAMMA = 5.0
KINDS = pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])


def numbers(seed: int, kind: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=kind)


@KINDS
def test_weighted_loss_is_that_of_diffusers_scripts(kind: str) -> None:
    """The lines are those of `train_text_to_image.py`."""
    scheduler = diffusers.DDPMScheduler(prediction_type=kind, **SCHEDULER)
    ours = Objective.of(SCHEDULER | {"prediction_type": kind}, "cpu", snr_gamma=GAMMA)
    # theirs is a product of 1000 numbers in float32, ours in float64
    abar = scheduler.alphas_cumprod
    torch.testing.assert_close(ours.alpha, abar.sqrt(), rtol=2e-5, atol=0.0)
    objective = replace(ours, alpha=abar.sqrt(), sigma=(1 - abar).sqrt())
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
    unweighted = replace(objective, weight=None).losses(predicted, x0, t, eps)
    torch.testing.assert_close(unweighted, plain, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("weight", [partial(min_snr, gamma=GAMMA), debiased], ids=["min-SNR", "debiased"])
@pytest.mark.parametrize("flow", [False, True])
def test_predictions_that_say_the_same_have_the_same_loss(weight: Weight, flow: bool) -> None:
    """In float64, at a fixed x_t.

    |d eps|^2 = snr |d x0|^2, |d v|^2 = (snr + 1) |d x0|^2 where alpha^2 + sigma^2 = 1, and |d u|^2 = |d x0|^2 / sigma^2
    of flow, where alpha + sigma = 1.
    """
    tables = Objective.of({"prediction_type": FLOW} if flow else SCHEDULER, "cpu")
    sigma = tables.sigma.double()
    alpha = 1 - sigma if flow else (1 - sigma.square()).sqrt()
    x0, believed, draws = numbers(0, torch.float64), numbers(1, torch.float64), Draws(0, range(64))
    for kind in ("epsilon", "sample", FLOW if flow else "v_prediction"):
        objective = Objective(kind, alpha[:-1], sigma[:-1], tables.times[:-1], weight)  # the last has no image in flow
        t, eps, x = objective.draw(x0, draws)
        a, s = objective.scales_at(t)
        said = TARGETS[kind](a, s, believed, (x - a * believed) / s)
        found = objective.losses(said, x0, t, eps.double())
        expected = weight((alpha[t] / sigma[t]).square()) * (believed - x0).square().mean(dim=(1, 2, 3))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=0.0)  # eps is a difference of numbers near it


def test_debiased_weights_of_noise_are_those_of_the_paper() -> None:
    """1 / sqrt(SNR(t)) (Yu et al. 2023, equation 12)."""
    plain, weighted = (Objective.of(SCHEDULER, "cpu", debias=debias) for debias in (False, True))
    x0, predicted, draws = numbers(0), numbers(1), Draws(0, range(64))
    t, eps, _ = plain.draw(x0, draws)
    expected = plain.losses(predicted, x0, t, eps) / (plain.alpha[t] / plain.sigma[t])
    torch.testing.assert_close(weighted.losses(predicted, x0, t, eps), expected, rtol=1e-6, atol=0.0)  # float32


def test_a_timestep_without_signal_counts_nothing() -> None:
    scheduler = SCHEDULER | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    objective, t = Objective.of(scheduler, "cpu", snr_gamma=GAMMA), torch.full((64,), 999)
    assert objective.alpha[-1] == 0
    assert not objective.losses(numbers(1), numbers(0), t, numbers(2)).any()


def test_flow_is_that_of_diffusers_scripts() -> None:
    """The lines are those of `train_dreambooth_lora_sd3.py`; the tables are `FlowMatchEulerDiscreteScheduler`'s."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    objective = Objective.of({"prediction_type": FLOW, "flow_shift": 3.0}, "cpu")
    torch.testing.assert_close(objective.sigma, scheduler.sigmas.flip(0), rtol=1e-6, atol=0.0)  # float32
    torch.testing.assert_close(objective.times, scheduler.timesteps.flip(0), rtol=1e-6, atol=0.0)
    x0, predicted = numbers(0), numbers(1)
    t, eps, x = objective.draw(x0, Draws(0, range(64)))
    sigma = objective.sigma[t][:, None, None, None]
    torch.testing.assert_close(x, (1.0 - sigma) * x0 + sigma * eps, rtol=1e-6, atol=1e-6)
    expected = mse_loss(predicted, eps - x0, reduction="none").mean(dim=[1, 2, 3])
    torch.testing.assert_close(objective.losses(predicted, x0, t, eps), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("weighting", [{"snr_gamma": 5.0}, {"debias": True}])
def test_flow_has_no_weights(weighting: dict) -> None:
    with pytest.raises(LdmrtError, match="cannot be combined with prediction_type flow_prediction"):
        Objective.of({"prediction_type": FLOW}, "cpu", **weighting)


def test_two_weightings_exclude_each_other() -> None:
    with pytest.raises(LdmrtError, match="--snr-gamma and --debias exclude each other"):
        Objective.of(SCHEDULER, "cpu", snr_gamma=5.0, debias=True)


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
    _, sigma = plain.scales_at(t)
    more = (other - x) / sigma
    assert abs(float(more.std()) - 0.1) < 0.003  # 12,288 numbers: four standard deviations
    assert abs(float((more * eps).mean())) < 0.004
