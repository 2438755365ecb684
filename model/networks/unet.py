"""Define the U-Net that predicts the noise (Rombach et al. 2022, arXiv:2112.10752; Ho et al. 2020, arXiv:2006.11239).

State-dict keys and config fields are those of diffusers' UNet2DConditionModel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ldmrt.model.config import RawConfig, positive
from ldmrt.runtime.errors import LdmrtError

from . import encoder_config
from .blocks import ACTIVATIONS, known_activation
from .encoder_config import MIDDLE, Depths, EncoderConfig, PerLevel
from .unet_encoder import UNetEncoder, build_level, levels

UP = ("CrossAttnUpBlock2D", "UpBlock2D")

# Config keys of diffusers that ask for something else than the blocks below, with the value that asks for nothing.
NEUTRAL: RawConfig = {
    **encoder_config.NEUTRAL,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dual_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
}


@dataclass(frozen=True)
class UNetConfig(EncoderConfig):
    """Holds the fields of UNet2DConditionModel's config that matter here; the defaults are diffusers'."""

    part: ClassVar[str] = "unet"
    neutral: ClassVar[RawConfig] = NEUTRAL
    middles: ClassVar[tuple[str | None, ...]] = (*MIDDLE, None)

    sample_size: int | tuple[int, ...] | None = None  # of the latents: one side, or height and width
    out_channels: int = 4
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    reverse_transformer_layers_per_block: Depths | None = None  # of the up blocks, from the deepest
    mid_block_only_cross_attention: bool | None = None  # diffusers heeds it in other middle blocks alone
    timestep_post_act: str | None = None
    time_embedding_act_fn: str | None = None
    time_cond_proj_dim: int | None = None  # LCM (Luo et al. 2023, arXiv:2310.04378): the guidance scale as an input

    def __post_init__(self) -> None:
        """Refuse what `EncoderConfig` refuses, unsupported up blocks and depths that do not fit them."""
        super().__post_init__()
        positive("unet", self, "sample_size", "out_channels", "time_cond_proj_dim")
        known_activation("unet", self, "timestep_post_act", "time_embedding_act_fn")
        if isinstance(self.sample_size, tuple) and len(self.sample_size) != 2:
            problem, expected = "config has an invalid sample_size", "one side, or height and width"
            raise LdmrtError("unet", problem, expected=expected, found=self.sample_size)
        self.check_blocks("up_block_types", UP)
        for level in range(len(self.block_out_channels)):
            self.up_depths(level)

    @property
    def class_act_fn(self) -> str:
        """The activation in the embedding of a class that is a number: that of the blocks."""
        return self.act_fn

    @property
    def attending(self) -> set[int]:
        """The indices of levels that read the context, on the way down or up."""
        ups = enumerate(reversed(self.up_block_types))
        return super().attending | {level for level, kind in ups if kind == UP[0]}

    def up_depths(self, level: int) -> tuple[int, ...]:
        """Return the depth of each transformer of a level on the way up, where it has one layer more."""
        depths: tuple[PerLevel, ...] = self.per_level(self.transformer_layers_per_block)
        if (reverse := self.reverse_transformer_layers_per_block) is not None:
            depths = self.per_level(reverse)  # from the deepest level
            depths = depths[::-1]
        return self.each_layer(depths[level], self.layers[level] + 1)


class UNet(UNetEncoder):
    """Predicts the noise in latents, or their velocity or clean latents, from a timestep and prompt embeddings."""

    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        """Build the down blocks, the middle, and up blocks that take the skips in reverse order."""
        time_acts = config.timestep_post_act, config.time_embedding_act_fn
        super().__init__(config, condition=config.time_cond_proj_dim, time_acts=time_acts)
        widths, skips = config.block_out_channels, list(self.skip_channels)
        self.up_blocks = nn.ModuleList()
        inner = widths[-1]
        for level, kind in zip(reversed(range(len(widths))), config.up_block_types, strict=True):
            width, layers = widths[level], config.layers[level] + 1
            channels = [(inner if i == 0 else width) + skips.pop() for i in range(layers)]
            depths = config.up_depths(level) if kind == UP[0] else ()
            only_cross = config.only_cross[level]
            self.up_blocks.append(build_level(config, level, channels, depths, only_cross=only_cross, up=level > 0))
            inner = width
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)
        self.act = ACTIVATIONS[config.act_fn.lower()]

    @classmethod
    def from_config(cls, config: RawConfig) -> "UNet":
        """Build the network of a diffusers config.json, with random weights."""
        return cls(UNetConfig.read(config))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        context: Tensor,
        *,
        timestep_cond: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        class_labels: Tensor | None = None,
        down_residuals: Sequence[Tensor] = (),
        mid_residual: Tensor | None = None,
        adapter_residuals: Sequence[Tensor] = (),
    ) -> Tensor:
        """Predict once, without guidance.

        Args:
            sample: Latents (B, in_channels, h, w), scaled as the sampler says; a model that inpaints takes the mask and
                the masked image's latents after them, as further channels.
            timestep: Model times (B,), 0 to 999 for Stable Diffusion.
            context: Prompt embeddings (B, M, cross_attention_dim).
            timestep_cond: Embedding of the guidance scale (B, time_cond_proj_dim), of LCM (Luo et al. 2023,
                arXiv:2310.04378).
            text_embeds: Pooled prompt embeddings (B, P), of SDXL (Podell et al. 2023, arXiv:2307.01952).
            time_ids: Sizes and crop (B, 6) of SDXL, or sizes, crop and score (B, 5) of its refiner, in pixels.
            class_labels: Classes (B,), int64 below num_class_embeds, or numbers that are embedded as the time is where
                class_embed_type is "timestep". An upscaler takes the noise level of the small image (Ho et al. 2021,
                arXiv:2106.15282).
            down_residuals: One residual for each skip, of a ControlNet (Zhang et al. 2023, arXiv:2302.05543).
            mid_residual: The ControlNet's residual for the middle.
            adapter_residuals: Residuals of a T2I-Adapter (Mou et al. 2023, arXiv:2302.08453), one a level and perhaps
                one for the middle.

        Returns:
            The prediction (B, out_channels, h, w): noise (Ho et al. 2020, equation 14), velocity or clean latents, by
            the scheduler's `prediction_type`.

        Raises:
            LdmrtError: A condition that the config asks for is missing or has another width or type, one is given that
                it does not ask for, or there is not one residual for each skip.
        """
        time = self.time(sample, timestep, timestep_cond, text_embeds, time_ids, class_labels)
        x, skips = self.down(self.conv_in(sample), time, context, adapter_residuals)
        if down_residuals:
            if len(down_residuals) != len(skips):
                found = len(down_residuals)
                raise LdmrtError("unet", "wrong number of down_residuals", expected=len(skips), found=found)
            skips = [skip + residual for skip, residual in zip(skips, down_residuals, strict=True)]
        x = self.middle(x, time, context, adapter_residuals)
        if mid_residual is not None:
            x = x + mid_residual
        for level in levels(self.up_blocks):
            for i, resnet in enumerate(level.resnets):
                x = resnet(torch.cat([x, skips.pop()], dim=1), time)
                if level.attentions is not None:
                    x = level.attentions[i](x, context)
            if level.upsamplers is not None:
                x = level.upsamplers[0](x, skips[-1].shape[2:])
        return self.conv_out(self.act(self.conv_norm_out(x)))
