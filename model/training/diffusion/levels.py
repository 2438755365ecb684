"""Compute the noise schedule that a network learns on, from the config of the scheduler that draws with it."""

import torch
from torch import Tensor

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.nearest import suggestion
from ldmrt.runtime.samplers.config import KEYS, Config, resolve
from ldmrt.runtime.samplers.schedule import alphas_cumprod

DDPM = "DDPMScheduler"
OF_BETAS = tuple(name for name, keys in KEYS.items() if "beta_schedule" in keys)  # classes


def cumulative_alphas(scheduler: Config) -> Tensor:
    """Compute the cumulative products of alpha of a scheduler's noise schedule.

    Args:
        scheduler: A scheduler's config; keys that it lacks have the defaults of its class, of `DDPMScheduler` where it
            names none. Keys of betas that it has count even where the class does not know them, as in diffusers'
            training scripts.

    Returns:
        alpha_bar of each training timestep, (T,), float64 on the CPU.

    Raises:
        LdmrtError: The class has no schedule of betas, or its network is given noise levels as timesteps.
    """
    name = str(scheduler.get("_class_name") or DDPM)
    hint = "--scheduler-config with the one it was trained on"
    if name not in OF_BETAS:
        problem = f"the noise schedule of {name} is not one of betas{suggestion(name, OF_BETAS)}"
        raise LdmrtError("scheduler", problem, expected=", ".join(OF_BETAS[:5]) + " and their kin", hint=hint)
    if scheduler.get("timestep_type") == "continuous":
        problem = "a network that is given noise levels cannot be trained on timesteps"
        raise LdmrtError("scheduler", problem, expected="timestep_type discrete", found="continuous", hint=hint)
    betas = {key: default for key, default in KEYS[name].items() if key in KEYS[DDPM]}
    return torch.from_numpy(alphas_cumprod(resolve({**betas, **scheduler}, DDPM)))


def check_epsilon(prediction: str, last: float) -> None:
    """Refuse to predict noise where the last timestep has no signal: x0 cannot be told from its noise.

    Args:
        prediction: The prediction type.
        last: alpha_bar, or alpha, of the last timestep.

    Raises:
        LdmrtError: The prediction type is epsilon, and `last` is 0.
    """
    if prediction == "epsilon" and last <= 0:
        problem = "rescale_betas_zero_snr cannot be combined with prediction_type epsilon"
        hint = "--prediction v_prediction, or another scheduler: its last timestep is noise alone"
        raise LdmrtError("scheduler", problem, expected="v_prediction or sample", hint=hint)
