"""Define what an inpainting model is given beside its state: a mask, and the latents of the image without its part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldmrt.model.checkpoint.checkpoint import Checkpoint
from ldmrt.model.networks.ldm_bert import LDMBert
from ldmrt.model.networks.unet import UNet
from ldmrt.model.training.data.captioned import Sample
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.latents import FirstStage, encoded, sampled, to_tensor
from ldmrt.runtime.bundle.stages import MASK_KINDS
from ldmrt.runtime.errors import LdmrtError

from .beside import add_channels
from .finetune import check_trainable
from .masks import MASKS, draw_masks


def inpainting(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint whose U-Net reads a mask and a masked image's latents, after its state.

    One that reads them already is returned as it is. Else its U-Net is widened, see `add_channels`.

    Raises:
        LdmrtError: The U-Net reads other things than captioned images and masks give, or no pipeline of diffusers
            fills images with this text encoder.
    """
    check_trainable(checkpoint, MASK_KINDS)
    stage, unet = checkpoint.stage, checkpoint.unet
    if stage.takes_mask:
        return checkpoint
    if any(isinstance(encoder, LDMBert) for encoder in checkpoint.text_encoders.values()):
        raise LdmrtError("train", "no pipeline fills images with this text encoder", expected="CLIP", found="BERT")
    assert isinstance(unet, UNet)  # `check_trainable` refuses others
    kind = f"StableDiffusion{'XL' if stage.source('sizes') else ''}InpaintPipeline"
    widened = add_channels(unet, 1 + stage.space.channels)
    return replace(checkpoint, denoiser=widened, index={**checkpoint.index, "_class_name": kind})


@dataclass(frozen=True)
class Masked:
    """Makes the channels that an inpainting U-Net reads beside its state, as diffusers' pipeline orders them.

    Attributes:
        vae: The autoencoder, on the networks' device.
        kinds: Kinds of masks, of which each sample draws one.
    """

    vae: FirstStage
    kinds: Sequence[str] = tuple(MASKS)

    def __call__(self, samples: list[Sample], draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the mask, as large as the latents, then the masked image's latents: (B, 1 + C, h, w); no more."""
        images = to_tensor([sample.image for sample in samples], draws.device)
        size, factor = (images.shape[2], images.shape[3]), self.vae.config.factor
        masks = draw_masks(draws, size, self.kinds)
        latents = sampled(encoded(self.vae, masked(images, masks)), self.vae, draws, "masked latents")
        return torch.cat([masks[:, :, ::factor, ::factor], latents], dim=1), {}


def masked(images: Tensor, masks: Tensor) -> Tensor:
    """Return images (B, 3, H, W) in [-1, 1], grey where their masks (B, 1, H, W) are 1."""
    return images * (masks < 0.5)
