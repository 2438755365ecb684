"""Define what a latent diffusion model learns from scratch: a U-Net and the text encoder that conditions it."""

from torch import nn

from ldmrt.model.training.data.captioned import Captioned
from ldmrt.model.training.data.masks import LossMasks
from ldmrt.model.training.diffusion.objective import Objective
from ldmrt.model.training.latents import FirstStage, LatentCache
from ldmrt.model.training.loop.task import TrainingTask

from .classes import Classes
from .finetune import TEXT_ENCODER, Denoiser, Tokenize, conditioned_task

__all__ = ["Denoiser", "ldm_task"]


def ldm_task(
    denoiser: nn.Module,
    data: Captioned,
    vae: FirstStage,
    tokenize: Tokenize,
    objective: Objective,
    cache: LatentCache | None = None,
    masks: LossMasks | None = None,
    classes: Classes | None = None,
) -> TrainingTask:
    """Let a U-Net and its text encoder learn together, see `conditioned_task`.

    Args:
        denoiser: Both networks in training, a `Denoiser`.
        data: Captioned images, (H, W, 3) with sides that are multiples of the autoencoder's factor.
        vae: The autoencoder, trained already; it does not change.
        tokenize: Turns B captions into token ids (B, length), int64.
        objective: What the U-Net predicts; its device is that of all three networks.
        cache: Keeps the latents' moments; None for memory.
        masks: Weight the loss of each latent; None for alike.
        classes: The classes that the U-Net is told beside the captions; None for none.

    Returns:
        The task, whose losses have the one part `denoising`.
    """
    return conditioned_task(
        denoiser, data, vae, {TEXT_ENCODER: tokenize}, objective, cache=cache, masks=masks, classes=classes
    )
