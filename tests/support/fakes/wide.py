"""A checkpoint whose U-Net is large enough that the memory of its weights can be seen."""

from dataclasses import replace
from typing import Any

import torch

from ldmrt.model import Autoencoder, AutoencoderConfig, UNet, UNetConfig

from ...conftest import tiny_checkpoint


def wide_checkpoint(width: int) -> tuple[Any, float]:
    """The tiny checkpoint with a U-Net of two levels so wide, and that one's megabytes in half precision."""
    torch.manual_seed(0)
    unet = UNetConfig(
        sample_size=8, block_out_channels=(width, width), layers_per_block=2, norm_num_groups=32,
        cross_attention_dim=24, attention_head_dim=8,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    vae = AutoencoderConfig(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=16, force_upcast=False,
    )  # fmt: skip
    model = replace(tiny_checkpoint(), denoiser=UNet(unet).eval(), vae=Autoencoder(vae).eval())
    return model, sum(weight.numel() for weight in model.denoiser.parameters()) * 2 / 2**20
