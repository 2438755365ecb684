"""Define what an upscaling model in latents is given beside its state: a small image with noise, and how much of it.

The noise makes a model robust against images that another one drew (Ho et al. 2021, arXiv:2106.15282, section 4.1).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmrt.model.checkpoint.checkpoint import Checkpoint, with_scaling_factor
from ldmrt.model.families.upscaler import MAX_NOISE_LEVEL, NOISER, SCALING_FACTOR
from ldmrt.model.networks.autoencoder import Autoencoder
from ldmrt.model.networks.ldm_bert import LDMBert
from ldmrt.model.networks.unet import UNet
from ldmrt.model.training.data.captioned import Sample
from ldmrt.model.training.diffusion.objective import levels_of, noised
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.latents import to_tensor
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.samplers.config import Config

from .beside import add_channels, kept
from .finetune import check_trainable

GIVES = ("noised_image", "noise_level")  # kinds of sources
PIPELINE = "StableDiffusionUpscalePipeline"
FOREIGN = ("requires_safety_checker", "image_encoder")  # of model_index.json, which this pipeline does not have
COLOURS = 3
NOISE: JsonObject = {  # of stabilityai/stable-diffusion-x4-upscaler
    "_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
}  # fmt: skip


def upscaling(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose U-Net reads a small image with noise after its state, and the noise's level.

    The U-Net of another kind gets weights of zero for both, so that its prediction stays the same, and the autoencoder
    gets latents of another scale, since the pipeline takes `SCALING_FACTOR` whatever its config says.

    Raises:
        LdmrtError: The U-Net reads other things, or no pipeline of diffusers enlarges images with its text encoders.
    """
    check_trainable(checkpoint, GIVES)
    stage, unet, vae = checkpoint.stage, checkpoint.unet, checkpoint.vae
    assert isinstance(vae, Autoencoder)  # `check_trainable` refuses others
    if stage.source(GIVES[0]) is not None:
        return replace(checkpoint, vae=with_scaling_factor(vae, SCALING_FACTOR))
    bert = any(isinstance(encoder, LDMBert) for encoder in checkpoint.text_encoders.values())
    if bert or stage.source("sizes") is not None:
        problem, found = "no pipeline enlarges images with these text encoders", "BERT" if bert else "SDXL's"
        raise LdmrtError("train", problem, expected="Stable Diffusion 1 or 2", found=found)
    assert isinstance(unet, UNet)
    index = {name: value for name, value in checkpoint.index.items() if name not in FOREIGN}
    return replace(
        checkpoint,
        denoiser=_with_levels(add_channels(unet, COLOURS), int(NOISE["num_train_timesteps"])),
        vae=rescale(vae, SCALING_FACTOR),
        index={**index, "_class_name": PIPELINE, "max_noise_level": MAX_NOISE_LEVEL},
        noisers={NOISER: NOISE},
    )


def _with_levels(unet: UNet, count: int) -> UNet:
    """Let a U-Net read a noise level below `count`, whose embedding is zero; returns the same object."""
    unet.class_embedding = nn.Embedding(count, 4 * unet.config.block_out_channels[0])
    nn.init.zeros_(unet.class_embedding.weight)
    unet.config = replace(unet.config, num_class_embeds=count)
    return unet


@torch.no_grad()
def rescale(vae: Autoencoder, scaling_factor: float) -> Autoencoder:
    """Change an autoencoder's latents so that they are the same after they are multiplied by another scaling factor.

    The last convolution of the encoder and the first of the decoder change; returns the same object.
    """
    scale = vae.config.scaling_factor / scaling_factor
    last = vae.quant_conv if vae.config.use_quant_conv else vae.encoder.conv_out
    first = vae.post_quant_conv if vae.config.use_post_quant_conv else vae.decoder.conv_in
    channels = vae.config.latent_channels
    assert isinstance(last, nn.Conv2d)
    assert isinstance(first, nn.Conv2d)
    assert last.bias is not None
    last.weight[:channels] *= scale
    last.bias[:channels] *= scale
    last.bias[channels:] += 2 * math.log(scale)
    first.weight /= scale
    if vae.config.shift_factor:
        vae.config = replace(vae.config, shift_factor=vae.config.shift_factor * scale)
    return with_scaling_factor(vae, scaling_factor)


@dataclass(frozen=True)
class SmallImages:
    """Makes the channels that an upscaling U-Net reads beside its state.

    Attributes:
        factor: How many times smaller the images are: as small as the latents.
        noiser: The config of the scheduler that adds noise to them.
        most: The highest level of noise, a timestep of it.
        dropout: The share of captions that are left out, see `kept`.
    """

    factor: int
    noiser: Config
    most: int
    dropout: float

    def __call__(self, samples: list[Sample], draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return small images with noise, (B, 3, h, w), zero where they are left out; and their levels, (B,)."""
        images = smaller(to_tensor([sample.image for sample in samples], draws.device), self.factor)
        level = draws.integers("noise levels", self.most + 1)
        noise = draws.normal("noise of the level", images.shape[1:])
        given = noised(images, levels_of(self.noiser, draws.device)[level], noise)
        return given * kept(draws, self.dropout)[:, None, None, None], {"class_labels": level}


def smaller(images: Tensor, factor: int) -> Tensor:
    """Reduce images (B, 3, H, W) in [-1, 1] this many times, bicubically."""
    return F.interpolate(images, scale_factor=1 / factor, mode="bicubic", antialias=True).clamp(-1, 1)
