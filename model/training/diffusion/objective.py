"""What a diffusion network learns to predict, how much each timestep counts, and the noise on what it is given."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldmrt.model.training.draws import Draws
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.samplers.config import Config, resolve
from ldmrt.runtime.samplers.schedule import alphas_cumprod

TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {  # of (alpha, sigma, x0, eps)
    "epsilon": lambda alpha, sigma, x0, eps: eps,
    "v_prediction": lambda alpha, sigma, x0, eps: alpha * eps - sigma * x0,  # Salimans & Ho 2022, appendix D
    "sample": lambda alpha, sigma, x0, eps: x0,
}
# By what the squared error of each prediction is multiplied, so that it counts as one of x0 by min(snr, gamma).
MIN_SNR: dict[str, Callable[[Tensor, float], Tensor]] = {  # Hang et al. 2023, arXiv:2303.09556, section 3.4
    "epsilon": lambda snr, gamma: snr.clamp(max=gamma) / snr,
    "v_prediction": lambda snr, gamma: snr.clamp(max=gamma) / (snr + 1),
    "sample": lambda snr, gamma: snr.clamp(max=gamma),
}
TIMESTEPS = "timesteps"  # what the draws of timesteps are for


@dataclass(frozen=True)
class Objective:
    """States what a network learns of images x0 that are given to it with noise.

    x_t = alpha x0 + sigma eps, with alpha^2 = abar and sigma^2 = 1 - abar. The loss is the mean squared error of the
    target, times a weight that depends on snr = alpha^2 / sigma^2.

    Attributes:
        prediction: The prediction type, a key of `TARGETS`.
        abar: The cumulative products of 1 - beta, (timesteps,), on the network's device.
        snr_gamma: Gamma of min-SNR weighting, at which the signal-to-noise ratio is clamped; None for no weighting.
        offset_noise: The standard deviation of a random constant that is added to each channel's noise.
        input_perturbation: The standard deviation of noise that the network is given and shall not predict (Ning et al.
            2023, arXiv:2301.11706, section 4).
    """

    prediction: str
    abar: Tensor
    snr_gamma: float | None = None
    offset_noise: float = 0.0
    input_perturbation: float = 0.0

    @classmethod
    def of(
        cls,
        scheduler: Config,
        device: str,
        *,
        snr_gamma: float | None = None,
        offset_noise: float | None = None,
        input_perturbation: float | None = None,
    ) -> "Objective":
        """Return the objective of a scheduler's noise schedule and prediction type; None is none of an option.

        Raises:
            LdmrtError: The prediction type cannot be trained, alone or on this noise schedule.
        """
        kind, abar = scheduler.get("prediction_type", "epsilon"), levels_of(scheduler, device)
        if kind not in TARGETS:
            raise LdmrtError("train", "unsupported prediction_type", expected=", ".join(TARGETS), found=kind)
        if kind == "epsilon" and abar[-1] <= 0:
            problem = "rescale_betas_zero_snr cannot be combined with prediction_type epsilon"
            raise LdmrtError(
                "train", problem, expected="v_prediction or sample", hint="its last timestep is noise alone"
            )
        return cls(kind, abar, snr_gamma, offset_noise or 0.0, input_perturbation or 0.0)

    def draw(self, x0: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Draw timesteps and noise for images (B, C, H, W).

        Returns:
            The timesteps t, (B,); the noise eps, as large as the images; and x_t, in channels-last memory.
        """
        t, eps = draws.integers(TIMESTEPS, len(self.abar)), draws.normal("noise", x0.shape[1:])
        if self.offset_noise:
            eps = eps + self.offset_noise * draws.normal("offset noise", (x0.shape[1], 1, 1))
        given = eps
        if self.input_perturbation:
            given = eps + self.input_perturbation * draws.normal("input perturbation", x0.shape[1:])
        return t, eps, noised(x0, self.abar[t], given).contiguous(memory_format=torch.channels_last)

    def losses(self, predicted: Tensor, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return the loss of each of B predictions, (B,)."""
        abar = self.abar[t]
        errors = squared_error(predicted, TARGETS[self.prediction](*alpha_and_sigma(abar), x0, eps))
        if self.snr_gamma is None:
            return errors
        return MIN_SNR[self.prediction](abar / (1 - abar), self.snr_gamma) * errors


def levels_of(scheduler: Config, device: str) -> Tensor:
    """Return a scheduler's cumulative products of alpha, (timesteps,), float32."""
    return torch.tensor(alphas_cumprod(resolve(scheduler, "DDPMScheduler")), dtype=torch.float32, device=device)


def alpha_and_sigma(abar: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales of images and of noise, (B, 1, 1, 1) each, for cumulative products of alpha (B,)."""
    return abar.sqrt()[:, None, None, None], (1.0 - abar).sqrt()[:, None, None, None]


def noised(x0: Tensor, abar: Tensor, noise: Tensor) -> Tensor:
    """Add noise to images (B, C, H, W) by the cumulative products of alpha (B,) (Ho et al. 2020, equation 4)."""
    alpha, sigma = alpha_and_sigma(abar)
    return alpha * x0 + sigma * noise


def squared_error(found: Tensor, expected: Tensor) -> Tensor:
    """Return the mean squared error of each of B samples, (B,), in float32 or the target's float64.

    The mean is taken in float64: in float32 its last bit depends on how many samples are computed at once.
    """
    kind = torch.promote_types(expected.dtype, torch.float32)  # of a network in half precision, the target's
    return (found.to(kind) - expected).square().flatten(1).mean(dim=1, dtype=torch.float64).to(kind)
