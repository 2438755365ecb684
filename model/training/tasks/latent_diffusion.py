"""Define what a latent diffusion model learns: a U-Net and the text encoder that conditions it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ldmrt.model.networks.autoencoder import Autoencoder, moments
from ldmrt.model.networks.unet import UNet
from ldmrt.model.training.data.captioned import Captioned, Sample
from ldmrt.model.training.diffusion.objective import Objective
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.latents import LatentCache
from ldmrt.model.training.loop.run import Losses, TrainingTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CAPTION_DROPOUT = 0.1  # Ho & Salimans 2022, arXiv:2207.12598: the share of empty captions that guidance needs


class Denoiser(nn.Module):
    """Holds the two networks that learn together: the U-Net and the text encoder that conditions it."""

    def __init__(self, unet: UNet, text_encoder: "PreTrainedModel") -> None:
        """Hold both as submodules, so that one optimizer has their weights."""
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder


def ldm_task(
    denoiser: Denoiser,
    data: Captioned,
    vae: Autoencoder,
    tokenize: Callable[[list[str]], NDArray[np.int64]],
    objective: Objective,
) -> TrainingTask:
    """Let a U-Net and its text encoder learn by the denoising loss (Ho et al. 2020, equation 14) in images' latents.

    Args:
        denoiser: Both networks in training.
        data: Captioned images, (H, W, 3) with sides that are multiples of the autoencoder's factor.
        vae: The autoencoder, trained already; it does not change.
        tokenize: Turns B captions into token ids (B, length), int64.
        objective: What the U-Net predicts; its device is that of all three networks.

    Returns:
        The task, whose losses have the one part `denoising`.
    """
    device = objective.device
    cache = LatentCache(vae, device)

    def loss_of(samples: list[Sample], draws: Draws) -> Losses:
        """Predict the noise of images' latents, each at a timestep of its own."""
        mean, log_variance = moments(cache(samples))
        latents = mean + torch.exp(0.5 * log_variance) * draws.normal("latents", mean.shape[1:])
        x0 = latents * vae.config.scaling_factor
        dropped = draws.chance("caption dropout", CAPTION_DROPOUT).tolist()
        ids = tokenize(["" if drop else s.caption for drop, s in zip(dropped, samples, strict=True)])
        context = denoiser.text_encoder(torch.from_numpy(ids).to(device)).last_hidden_state
        t, eps, x = objective.draw(x0, draws)
        return {"denoising": objective.losses(denoiser.unet(x, objective.times[t], context), x0, t, eps)}

    return TrainingTask(data, loss_of, timesteps=len(objective.times), wanted=cache.lacks, memory=objective.memory)
