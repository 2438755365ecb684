"""Give a U-Net further channels beside its state: an image, a mask, or whatever else is as large as the latents.

Such channels are concatenated with the noised latents (Rombach et al. 2022, arXiv:2112.10752, section 3.3).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ldmrt.model.networks.unet import UNet
from ldmrt.model.training.data.captioned import Sample
from ldmrt.model.training.draws import Draws

CAPTION_DROPPING = "caption dropout"  # what the numbers are for that say whether a caption is dropped
# Makes, of B samples and their random numbers, channels (B, C, h, w) and further inputs of the U-Net by their names.
Beside = Callable[[list[Sample], Draws], tuple[Tensor, Mapping[str, Tensor]]]


@torch.no_grad()
def add_channels(unet: UNet, channels: int) -> UNet:
    """Let a U-Net read further channels after those it has; their weights are zero, so its prediction stays the same.

    Args:
        unet: The U-Net, whose first convolution and config change.
        channels: How many more.

    Returns:
        The same object.
    """
    old = unet.conv_in
    new = nn.Conv2d(old.in_channels + channels, old.out_channels, 3, padding=1)
    new.to(old.weight.device, old.weight.dtype)
    new.weight.zero_()
    new.weight[:, : old.in_channels] = old.weight
    new.bias.copy_(old.bias)  # type: ignore[union-attr,arg-type]
    unet.conv_in, unet.config = new, replace(unet.config, in_channels=new.in_channels)
    return unet


def kept(draws: Draws, dropout: float) -> Tensor:
    """Tell which of B samples' images or classes the U-Net is given, (B,), bool, where captions are dropped so often.

    Half of the dropped captions are dropped alone, half together with their image, and as many images alone: what
    diffusers' train_instruct_pix2pix.py does (Brooks et al. 2023, arXiv:2211.09800, section 3.2.1).
    """
    drawn = draws.uniform(CAPTION_DROPPING)
    return (drawn < dropout / 2) | (drawn >= 1.5 * dropout)
