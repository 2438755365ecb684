"""ControlNet: a copy of the U-Net's half that turns a picture into residuals (Zhang et al. 2023, arXiv:2302.05543).

State-dict keys and config fields are those of diffusers' ControlNetModel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ldmrt.model.config import positive
from ldmrt.runtime.errors import LdmrtError

from . import encoder_config
from .encoder_config import EncoderConfig
from .unet_encoder import UNetEncoder

ORDERS = ("rgb", "bgr")

NEUTRAL: dict[str, Any] = {**encoder_config.NEUTRAL, "global_pool_conditions": False}


@dataclass(frozen=True)
class ControlNetConfig(EncoderConfig):
    """What of diffusers' config is read; the defaults are diffusers'."""

    part: ClassVar[str] = "controlnet"
    neutral: ClassVar[dict[str, Any]] = NEUTRAL

    conditioning_channels: int = 3
    controlnet_conditioning_channel_order: str = "rgb"
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("controlnet", self, "conditioning_channels", "conditioning_embedding_out_channels")
        if (order := self.controlnet_conditioning_channel_order) not in ORDERS:
            problem = "config has an invalid controlnet_conditioning_channel_order"
            raise LdmrtError("controlnet", problem, expected=" or ".join(ORDERS), found=order)

    @property
    def factor(self) -> int:
        """Pixels of the picture a latent, along one side."""
        return 2 ** (len(self.conditioning_embedding_out_channels) - 1)


class ConditioningEmbedding(nn.Module):
    """Picture to features of the latents' size: (B, in, H, W) -> (B, out, H/f, W/f)."""

    def __init__(self, inner: int, widths: Sequence[int], outer: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(inner, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in pairwise(widths):
            self.blocks.append(nn.Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, 3, stride=2, padding=1))
        self.conv_out = nn.Conv2d(widths[-1], outer, 3, padding=1)

    def forward(self, picture: Tensor) -> Tensor:
        x = F.silu(self.conv_in(picture))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)


class ControlNet(UNetEncoder):
    """Residuals for the U-Net's skips and middle."""

    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        widths = config.block_out_channels
        self.controlnet_cond_embedding = ConditioningEmbedding(
            config.conditioning_channels, config.conditioning_embedding_out_channels, widths[0]
        )
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(width, width, 1) for width in self.skip_channels)
        self.controlnet_mid_block = nn.Conv2d(widths[-1], widths[-1], 1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        context: Tensor,
        cond: Tensor,
        scale: Tensor,
        *,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """The U-Net's inputs, a picture `cond` (B, 3, f*H, f*W) in [0, 1], and what to multiply by, () or (B,)."""
        if self.config.controlnet_conditioning_channel_order == "bgr":
            cond = cond.flip(1)
        time = self.time(sample, timestep, None, text_embeds, time_ids)
        x, skips = self.down(self.conv_in(sample) + self.controlnet_cond_embedding(cond), time, context)
        x = self.middle(x, time, context)
        factor = scale.reshape(-1, 1, 1, 1)
        residuals = tuple(
            scaled(zero(skip), factor) for zero, skip in zip(self.controlnet_down_blocks, skips, strict=True)
        )
        return residuals, scaled(self.controlnet_mid_block(x), factor)


def scaled(residual: Tensor, factor: Tensor) -> Tensor:
    """The product, rounded once: a scale of 0.7 is not one of half precision."""
    return (residual * factor).to(residual.dtype)
