"""What a diffusion network learns to predict, how much each timestep counts, and the noise on what it is given."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ldmrt.model.training.draws import Draws
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.samplers.config import Config

from .error import ERRORS, scheduled_c, squared_error
from .levels import check_epsilon, check_flow, cumulative_alphas
from .noise import offset_noise, pyramid_noise
from .timesteps import DENSITIES, TIMESTEPS, Importance
from .weighting import Weight, debiased, min_snr, weights

FLOW = "flow_prediction"
TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {  # of (alpha, sigma, x0, eps)
    "epsilon": lambda alpha, sigma, x0, eps: eps,
    "v_prediction": lambda alpha, sigma, x0, eps: alpha * eps - sigma * x0,  # Salimans & Ho 2022, appendix D
    "sample": lambda alpha, sigma, x0, eps: x0,
    FLOW: lambda alpha, sigma, x0, eps: eps - x0,  # Liu et al. 2022, arXiv:2209.03003
}


@dataclass(frozen=True)
class Objective:
    """States what a network learns of images x0 that are given to it with noise, x_t = alpha x0 + sigma eps.

    The loss is the mean squared error of the target, or another error, times a weight that depends on
    snr = alpha^2 / sigma^2.

    Attributes:
        prediction: The prediction type, a key of `TARGETS`.
        alpha: The scale of images at each timestep, (T,), on the network's device.
        sigma: The scale of noise, (T,).
        times: What the network is given as the timestep, (T,).
        weight: The weight of x0's squared error, of the signal-to-noise ratio; None leaves the prediction's as it is.
        loss: The error that is minimised: "l2", or a key of `ERRORS`.
        huber_c: Of errors other than the squared one, c at the last timestep.
        sampling: How timesteps are drawn: "uniform", a key of `DENSITIES`, or by what earlier losses were.
        offset_noise: The standard deviation of a random constant that is added to each channel's noise.
        pyramid_noise: The discount of noise of lower resolutions.
        input_perturbation: The standard deviation of noise that the network is given and shall not predict (Ning et al.
            2023, arXiv:2301.11706, section 4).
    """

    prediction: str
    alpha: Tensor
    sigma: Tensor
    times: Tensor
    weight: Weight | None = None
    loss: str = "l2"
    huber_c: float = 0.1
    sampling: str | Importance = "uniform"
    offset_noise: float = 0.0
    pyramid_noise: float = 0.0
    input_perturbation: float = 0.0

    @classmethod
    def of(
        cls,
        scheduler: Config,
        device: str,
        *,
        snr_gamma: float | None = None,
        debias: bool = False,
        loss: str = "l2",
        huber_c: float = 0.1,
        timesteps: str = "uniform",
        offset_noise: float | None = None,
        pyramid_noise: float | None = None,
        input_perturbation: float | None = None,
    ) -> "Objective":
        """Return the objective of a scheduler's noise schedule and prediction type; None is none of an option.

        Args:
            scheduler: The config of a diffusers scheduler.
            device: The network's device.
            snr_gamma: Gamma of min-SNR weighting, at which the signal-to-noise ratio is clamped.
            debias: Whether x0's squared error is weighted by the root of the signal-to-noise ratio.
            loss: See the class.
            huber_c: See the class.
            timesteps: How timesteps are drawn, one of `SAMPLINGS`.
            offset_noise: See the class.
            pyramid_noise: See the class.
            input_perturbation: See the class.

        Raises:
            LdmrtError: The prediction type cannot be trained, alone, on this noise schedule, or with these weights; or
                the scheduler's class has no noise schedule of betas.
        """
        kind = scheduler.get("prediction_type", "epsilon")
        if kind not in TARGETS:
            raise LdmrtError("train", "unsupported prediction_type", expected=", ".join(TARGETS), found=kind)
        alpha, sigma, times = flow_scales(scheduler, device) if kind == FLOW else scales(scheduler, device)
        check_epsilon(kind, float(alpha[-1]))
        weight = _weight(kind, snr_gamma, debias)
        sampling = Importance(len(times)) if timesteps == "importance" else timesteps
        return cls(
            kind, alpha, sigma, times, weight, loss, huber_c, sampling,
            offset_noise or 0.0, pyramid_noise or 0.0, input_perturbation or 0.0,
        )  # fmt: skip

    @property
    def device(self) -> str:
        """The network's device."""
        return str(self.times.device)

    @property
    def memory(self) -> Importance | None:
        """What the draws of timesteps have learned from earlier losses, if they do."""
        return self.sampling if isinstance(self.sampling, Importance) else None

    def draw(self, x0: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Draw timesteps and noise for images (B, C, H, W).

        Returns:
            The timesteps t, (B,), places of `times`; the noise eps, as large as the images; and x_t, in channels-last
            memory.
        """
        t, eps = self._timesteps(draws), draws.normal("noise", x0.shape[1:])
        if self.offset_noise:
            eps = eps + offset_noise(draws, x0.shape[1], self.offset_noise)
        if self.pyramid_noise:
            eps = pyramid_noise(eps, draws, self.pyramid_noise)
        given = eps
        if self.input_perturbation:
            given = eps + self.input_perturbation * draws.normal("input perturbation", x0.shape[1:])
        alpha, sigma = self.scales_at(t)
        return t, eps, (alpha * x0 + sigma * given).contiguous(memory_format=torch.channels_last)

    def _timesteps(self, draws: Draws) -> Tensor:
        """Draw a timestep for each sample, (B,), and note it."""
        count = len(self.times)
        if self.sampling == "uniform":
            return draws.integers(TIMESTEPS, count)
        if isinstance(self.sampling, Importance):
            return draws.note(TIMESTEPS, self.sampling.draw(draws))
        return draws.note(TIMESTEPS, (DENSITIES[self.sampling](draws) * count).long().clamp(0, count - 1))

    def scales_at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scales of images and of noise at timesteps (B,), (B, 1, 1, 1) each."""
        return self.alpha[t][:, None, None, None], self.sigma[t][:, None, None, None]

    def losses(self, predicted: Tensor, x0: Tensor, t: Tensor, eps: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss of each of B predictions, (B,), in which a mask (B, 1, H, W) weights the pixels."""
        target = TARGETS[self.prediction](*self.scales_at(t), x0, eps)
        if self.loss == "l2":
            errors = squared_error(predicted, target, mask)
        else:
            errors = ERRORS[self.loss](predicted, target, scheduled_c(self.huber_c, t, len(self.times)), mask)
        if self.weight is not None:
            errors = weights(self.prediction, (self.alpha[t] / self.sigma[t]).square(), self.weight) * errors
        return self.corrected(errors, t)

    def corrected(self, losses: Tensor, t: Tensor) -> Tensor:
        """Return losses (B,) at timesteps (B,), so that their mean is that of timesteps that are drawn alike."""
        return losses if self.memory is None else losses * self.memory.correction(t).to(losses.dtype)


def _weight(prediction: str, snr_gamma: float | None, debias: bool) -> Weight | None:
    """Return the weight that options ask for.

    Raises:
        LdmrtError: They exclude each other, or the prediction type.
    """
    if snr_gamma is not None and debias:
        raise LdmrtError("train", "--snr-gamma and --debias exclude each other", expected="one of them")
    if prediction == FLOW and (snr_gamma is not None or debias):
        option = "--debias" if debias else "--snr-gamma"
        raise LdmrtError("train", f"{option} cannot be combined with prediction_type {FLOW}", hint=f"no {option}")
    return debiased if debias else None if snr_gamma is None else partial(min_snr, gamma=snr_gamma)


def scales(scheduler: Config, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return alpha, sigma and the timesteps of a diffusion that preserves variance, (T,) each."""
    abar = levels_of(scheduler, device)
    return abar.sqrt(), (1.0 - abar).sqrt(), torch.arange(len(abar), device=device)


def flow_scales(scheduler: Config, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return alpha = 1 - sigma, sigma and the times T sigma of rectified flow, (T,) each, float32.

    sigma is shifted by `flow_shift` as Esser et al. 2024 do (arXiv:2403.03206, equation 23).

    Raises:
        LdmrtError: The scheduler's class knows no flow.
    """
    check_flow(scheduler)
    total, shift = int(scheduler.get("num_train_timesteps", 1000)), float(scheduler.get("flow_shift", 1.0))
    even = torch.arange(1, total + 1, dtype=torch.float64, device=device) / total
    sigma = shift * even / (1 + (shift - 1) * even)
    return (1 - sigma).float(), sigma.float(), (total * sigma).float()


def levels_of(scheduler: Config, device: str) -> Tensor:
    """Return a scheduler's cumulative products of alpha, (timesteps,), float32."""
    return cumulative_alphas(scheduler).to(device, torch.float32)


def noised(x0: Tensor, abar: Tensor, noise: Tensor) -> Tensor:
    """Add noise to images (B, C, H, W) by the cumulative products of alpha (B,) (Ho et al. 2020, equation 4)."""
    return abar.sqrt()[:, None, None, None] * x0 + (1.0 - abar).sqrt()[:, None, None, None] * noise
