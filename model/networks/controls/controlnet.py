"""Define ControlNet, a copy of half the U-Net that turns an image into residuals (Zhang et al. 2023, arXiv:2302.05543).

State-dict keys and config fields are those of diffusers' ControlNetModel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ldmrt.model.config import RawConfig, positive
from ldmrt.model.networks.configs import context_config
from ldmrt.model.networks.configs.context_config import ContextConfig
from ldmrt.model.networks.unet_encoder import UNetEncoder, transformer
from ldmrt.runtime.errors import LdmrtError

ORDERS = ("rgb", "bgr")

NEUTRAL: RawConfig = {**context_config.NEUTRAL, "global_pool_conditions": False}


@dataclass(frozen=True)
class ControlNetConfig(ContextConfig):
    """Holds the fields of ControlNetModel's config that matter here; the defaults are diffusers'."""

    part: ClassVar[str] = "controlnet"
    neutral: ClassVar[RawConfig] = NEUTRAL

    conditioning_channels: int = 3
    controlnet_conditioning_channel_order: str = "rgb"
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)

    def __post_init__(self) -> None:
        """Refuse what `ContextConfig` refuses, sizes of the image embedding below 1 and an unknown channel order."""
        super().__post_init__()
        positive("controlnet", self, "conditioning_channels", "conditioning_embedding_out_channels")
        if (order := self.controlnet_conditioning_channel_order) not in ORDERS:
            problem = "config has an invalid controlnet_conditioning_channel_order"
            raise LdmrtError("controlnet", problem, expected=" or ".join(ORDERS), found=order)

    @property
    def factor(self) -> int:
        """Pixels of the control image that one latent stands for, along one side."""
        return 2 ** (len(self.conditioning_embedding_out_channels) - 1)


class ConditioningEmbedding(nn.Module):
    """Turns a control image into features of the latents' size (Zhang et al. 2023, section 3.2)."""

    def __init__(self, inner: int, widths: Sequence[int], outer: int) -> None:
        """Build convolutions from `inner` channels through `widths`, each step of which halves the size, to `outer`."""
        super().__init__()
        self.conv_in = nn.Conv2d(inner, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in pairwise(widths):
            self.blocks.append(nn.Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, 3, stride=2, padding=1))
        self.conv_out = nn.Conv2d(widths[-1], outer, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Embed an image (B, inner, H, W); returns (B, outer, H/f, W/f), with f twice as large for each width more."""
        x = F.silu(self.conv_in(image))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)


class ControlNet(UNetEncoder):
    """Turns a control image into residuals for the U-Net's skips and middle (Zhang et al. 2023, arXiv:2302.05543)."""

    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig) -> None:
        """Build the copy of the U-Net's half, the image's embedding and one 1x1 convolution for each residual."""
        super().__init__(config, partial(transformer, config))
        widths = config.block_out_channels
        self.controlnet_cond_embedding = ConditioningEmbedding(
            config.conditioning_channels, config.conditioning_embedding_out_channels, widths[0]
        )
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(width, width, 1) for width in self.skip_channels)
        self.controlnet_mid_block = nn.Conv2d(widths[-1], widths[-1], 1)

    @classmethod
    def from_config(cls, config: RawConfig) -> "ControlNet":
        """Build the network of a diffusers config.json, with random weights."""
        return cls(ControlNetConfig.read(config))

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
        class_labels: Tensor | None = None,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Compute the residuals of one evaluation.

        Args:
            sample: Latents (B, C, h, w), as the U-Net takes them.
            timestep: Model times (B,).
            context: Prompt embeddings (B, M, cross_attention_dim).
            cond: Control images (B, 3, f*h, f*w) in [0, 1], RGB; f is `config.factor`.
            scale: Factor of all residuals, () or (B,).
            text_embeds: Pooled prompt embeddings (B, P) of SDXL.
            time_ids: Sizes and crop (B, 6), or sizes, crop and score (B, 5), of SDXL and its refiner, in pixels.
            class_labels: Classes (B,), as the U-Net takes them.

        Returns:
            One residual for each skip of the U-Net, in its order, and one for the middle, each of the skip's shape.

        Raises:
            LdmrtError: An embedding or class that the config asks for is missing or has another width or type.
        """
        if self.config.controlnet_conditioning_channel_order == "bgr":
            cond = cond.flip(1)
        time = self.time(sample, timestep, None, text_embeds, time_ids, class_labels)
        x, skips = self.down(self.conv_in(sample) + self.controlnet_cond_embedding(cond), time, context)
        x = self.middle(x, time, context)
        factor = scale.reshape(-1, 1, 1, 1)
        residuals = tuple(
            scaled(zero(skip), factor) for zero, skip in zip(self.controlnet_down_blocks, skips, strict=True)
        )
        return residuals, scaled(self.controlnet_mid_block(x), factor)


def scaled(residual: Tensor, factor: Tensor) -> Tensor:
    """Multiply residuals by their factor, rounded once: a scale of 0.7 has no exact value in half precision."""
    return (residual * factor).to(residual.dtype)
