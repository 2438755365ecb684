"""What a diffusion network learns to predict, and the noise on what it is given."""

from collections.abc import Callable

import torch
from torch import Tensor

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.samplers.config import Config, resolve
from ldmrt.runtime.samplers.schedule import alphas_cumprod

Target = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # of (alpha, sigma, x0, eps)
TARGETS: dict[str, Target] = {
    "epsilon": lambda alpha, sigma, x0, eps: eps,
    "v_prediction": lambda alpha, sigma, x0, eps: alpha * eps - sigma * x0,  # Salimans & Ho 2022, appendix D
    "sample": lambda alpha, sigma, x0, eps: x0,
}
TIMESTEPS = "timesteps"  # what the draws of timesteps are for


def target_of(scheduler: Config) -> Target:
    """Return the target of a scheduler's prediction type.

    Raises:
        LdmrtError: The prediction type cannot be trained, alone or on this noise schedule.
    """
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in TARGETS:
        raise LdmrtError("train", "unsupported prediction_type", expected=", ".join(TARGETS), found=kind)
    if kind == "epsilon" and levels_of(scheduler, "cpu")[-1] <= 0:
        problem = "rescale_betas_zero_snr cannot be combined with prediction_type epsilon"
        raise LdmrtError("train", problem, expected="v_prediction or sample", hint="its last timestep is noise alone")
    return TARGETS[kind]


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
    """Return the mean squared error of each of B samples, (B,), float32.

    The mean is taken in float64: in float32 its last bit depends on how many samples are computed at once.
    """
    errors = (found.float() - expected.float()).square()
    return errors.flatten(1).mean(dim=1, dtype=torch.float64).float()
