"""Define the U-Net that predicts the noise (Rombach et al. 2022, arXiv:2112.10752; Ho et al. 2020, arXiv:2006.11239).

State-dict keys and config fields are those of diffusers' UNet2DConditionModel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from ldmrt.model.config import RawConfig, positive

from .attention import Context
from .blocks import known_activation
from .configs import context_config
from .configs.context_config import MIDDLE, ContextConfig, Depths
from .configs.encoder_config import PerLevel
from .unet_body import BodyConfig, UNetBody
from .unet_encoder import transformer

UP = ("CrossAttnUpBlock2D", "UpBlock2D")

# Config keys of diffusers that ask for something else than the blocks below, with the value that asks for nothing.
NEUTRAL: RawConfig = {
    **context_config.NEUTRAL,
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
class UNetConfig(ContextConfig, BodyConfig):
    """Holds the fields of UNet2DConditionModel's config that matter here; the defaults are diffusers'."""

    neutral: ClassVar[RawConfig] = NEUTRAL
    ups: ClassVar[tuple[str, str]] = UP
    middles: ClassVar[tuple[str | None, ...]] = (*MIDDLE, None)

    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    reverse_transformer_layers_per_block: Depths | None = None  # of the up blocks, from the deepest
    mid_block_only_cross_attention: bool | None = None  # diffusers heeds it in other middle blocks alone
    timestep_post_act: str | None = None
    time_embedding_act_fn: str | None = None
    time_cond_proj_dim: int | None = None  # LCM (Luo et al. 2023, arXiv:2310.04378): the guidance scale as an input

    def __post_init__(self) -> None:
        """Refuse what `ContextConfig` and `BodyConfig` refuse, and depths that do not fit the up blocks."""
        super().__post_init__()
        positive("unet", self, "time_cond_proj_dim")
        known_activation("unet", self, "timestep_post_act", "time_embedding_act_fn")
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


class UNet(UNetBody):
    """Predicts the noise in latents, or their velocity or clean latents, from a timestep and prompt embeddings."""

    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        """Build the network, with transformers that read the context in some levels."""
        time_acts = config.timestep_post_act, config.time_embedding_act_fn
        super().__init__(config, partial(transformer, config), condition=config.time_cond_proj_dim, time_acts=time_acts)

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
        ip_adapter_embeds: Tensor | None = None,
        ip_adapter_scale: Tensor | None = None,
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
            ip_adapter_embeds: Tokens of an image (B, T, cross_attention_dim), of an IP-Adapter (Ye et al. 2023,
                arXiv:2308.06721), for a network whose attention was widened by one.
            ip_adapter_scale: How much they count in each transformer, (B, transformers).
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
        read: Context = context
        if ip_adapter_embeds is not None and ip_adapter_scale is not None:
            read = context, ip_adapter_embeds, ip_adapter_scale
        return self.predict(
            sample,
            time,
            read,
            down_residuals=down_residuals,
            mid_residual=mid_residual,
            adapter_residuals=adapter_residuals,
        )
