"""Define what an autoencoder and a latent diffusion model learn, and the weights that they begin with."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ldmrt.model.networks.attention import Transformer2D
from ldmrt.model.networks.autoencoder import Autoencoder, kl_divergence, moments
from ldmrt.model.networks.blocks import ResnetBlock, Upsample
from ldmrt.model.networks.unet import UNet

from .data.captioned import Captioned, Sample
from .draws import Draws
from .latents import LatentCache, to_tensor
from .objective import Objective, squared_error
from .run import Losses, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KL_WEIGHT = 1e-6  # Rombach et al. 2022, appendix G: latents stay near unit scale, images stay sharp
CAPTION_DROPOUT = 0.1  # Ho & Salimans 2022, arXiv:2207.12598: the share of empty captions that guidance needs


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Give a network first weights that it learns fast from.

    Every residual branch begins at zero (Goyal et al. 2017, section 5.1), and the path beside the branches keeps the
    variance of its activations (Glorot & Bengio 2010), which PyTorch's default shrinks by three at every convolution.
    """
    branch: set[nn.Module] = set()
    inner: set[nn.Module] = set()
    for child in module.modules():
        if isinstance(child, ResnetBlock):
            branch.add(child.conv2)
            inner.add(child.conv1)
        elif isinstance(child, Transformer2D):
            branch.add(child.proj_out)
    upsampling = {child.conv for child in module.modules() if isinstance(child, Upsample)}
    for child in module.modules():
        if child in branch:
            nn.init.zeros_(child.weight)  # type: ignore[arg-type]
        elif isinstance(child, nn.Conv2d):
            fan = child.weight[0].numel() / (4 if child in upsampling else 1)  # four equal neighbours add up
            nn.init.normal_(child.weight, std=math.sqrt((2 if child in inner else 1) / fan))
        elif isinstance(child, nn.Embedding):  # of classes, which begin nearly alike
            nn.init.normal_(child.weight, std=0.02)
            continue
        else:
            continue
        nn.init.zeros_(child.bias)  # type: ignore[arg-type]


def autoencoder_task(vae: Autoencoder, data: Captioned) -> Task:
    """Let an autoencoder learn by the squared error of its reconstruction, and KL (Rombach et al. 2022, section 3.1).

    Args:
        vae: The autoencoder in training.
        data: Images (H, W, 3) with sides that are multiples of the autoencoder's factor; captions are unused.

    Returns:
        The task, whose losses have the parts `reconstruction` and `kl`.
    """

    def loss_of(samples: list[Sample], draws: Draws) -> Losses:
        """Reconstruct images through latents drawn from their distribution."""
        x = to_tensor([sample.image for sample in samples], draws.device)
        mean, log_variance = moments(vae.encode(x))
        latents = mean + torch.exp(0.5 * log_variance) * draws.normal("latents", mean.shape[1:])
        kl = kl_divergence(mean.float(), log_variance.float())
        return {"reconstruction": squared_error(vae.decode(latents), x), "kl": KL_WEIGHT * kl}

    return Task(data, loss_of)


class Denoiser(nn.Module):
    """Holds the two networks that learn together: the U-Net and the text encoder that conditions it."""

    def __init__(self, unet: UNet, text_encoder: "PreTrainedModel") -> None:
        """Hold both as submodules, so that one optimiser has their weights."""
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder


def ldm_task(
    denoiser: Denoiser,
    data: Captioned,
    vae: Autoencoder,
    tokenize: Callable[[list[str]], NDArray[np.int64]],
    objective: Objective,
) -> Task:
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
    device = str(objective.abar.device)
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
        return {"denoising": objective.losses(denoiser.unet(x, t, context), x0, t, eps)}

    return Task(data, loss_of, timesteps=len(objective.abar), wanted=cache.lacks)
