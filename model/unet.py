"""The U-Net that predicts the noise (Rombach et al. 2022, arXiv:2112.10752; Ho et al. 2020, arXiv:2006.11239).

State-dict keys and config fields are those of diffusers' UNet2DConditionModel.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmrt.runtime import LdmrtError

from .attention import Transformer2D
from .blocks import Downsample, Level, ResnetBlock, TimestepEmbedding, Upsample, sinusoids
from .config import from_config, positive

PerLevel = int | tuple[int, ...]

# Config keys of diffusers that ask for something else than the blocks below, with the value that asks for nothing.
NEUTRAL: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dropout": 0.0,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}


@dataclass(frozen=True)
class UNetConfig:
    """What of diffusers' config is read; the defaults are diffusers'. `PerLevel` is one number or one a level."""

    sample_size: int | None = None
    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: PerLevel = 2
    downsample_padding: int = 1
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: PerLevel = 1
    attention_head_dim: PerLevel = 8  # the number of heads: diffusers keeps an old misnomer
    num_attention_heads: PerLevel | None = None
    use_linear_projection: bool = False
    upcast_attention: bool = False  # asks for float32 attention in a float16 model; in float32 there is nothing to do

    def __post_init__(self) -> None:
        positive("unet", self, "in_channels", "out_channels", "block_out_channels", "layers_per_block", "sample_size")
        positive("unet", self, "norm_num_groups", "cross_attention_dim", "transformer_layers_per_block")
        positive("unet", self, "attention_head_dim", "num_attention_heads")
        levels = len(self.block_out_channels)
        for name, allowed in (("down_block_types", DOWN), ("up_block_types", UP)):
            types = getattr(self, name)
            if len(types) != levels:
                raise LdmrtError(
                    "unet",
                    f"{name} does not fit block_out_channels",
                    expected=f"{levels} blocks",
                    found=types,
                )
            if unknown := [block for block in types if block not in allowed]:
                raise LdmrtError(
                    "unet", f"{name} asks for {unknown[0]}, which is not here", expected=" or ".join(allowed)
                )
        for width, heads in zip(self.block_out_channels, self.heads, strict=True):
            if width % self.norm_num_groups or width % heads:
                raise LdmrtError(
                    "unet",
                    f"block_out_channels {width} cannot be split",
                    expected=f"a multiple of {self.norm_num_groups} groups and of {heads} heads",
                )

    @classmethod
    def read(cls, config: dict[str, Any]) -> "UNetConfig":
        """From the dict in diffusers' config.json."""
        return from_config(cls, config, NEUTRAL, "unet")

    def per_level(self, value: PerLevel) -> tuple[int, ...]:
        """`value` once a level."""
        levels = len(self.block_out_channels)
        values = (value,) * levels if isinstance(value, int) else tuple(value)
        if len(values) != levels:
            raise LdmrtError(
                "unet", "a list does not fit block_out_channels", expected=f"{levels} values", found=values
            )
        return values

    @property
    def heads(self) -> tuple[int, ...]:
        """The number of attention heads of each level."""
        return self.per_level(self.num_attention_heads or self.attention_head_dim)


DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
UP = ("CrossAttnUpBlock2D", "UpBlock2D")


class UNet(nn.Module):
    """Noise prediction: sample (B, in, H, W), timestep (B,), context (B, M, cross) -> (B, out, H, W)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        levels = range(len(widths))
        layers = config.per_level(config.layers_per_block)
        depths = config.per_level(config.transformer_layers_per_block)
        last = len(widths) - 1

        def resnet(inner: int, outer: int) -> ResnetBlock:
            return ResnetBlock(
                inner, outer, groups=config.norm_num_groups, eps=config.norm_eps, time_channels=4 * widths[0]
            )

        def transformers(level: int, kind: str, count: int) -> list[nn.Module] | None:
            if not kind.startswith("CrossAttn"):
                return None
            return [
                Transformer2D(
                    widths[level],
                    config.heads[level],
                    config.cross_attention_dim,
                    depth=depths[level],
                    groups=config.norm_num_groups,
                    linear=config.use_linear_projection,
                )
                for _ in range(count)
            ]

        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0])

        down, skips = [], [widths[0]]  # channels of each skip connection, in the order that they are made
        for level, kind in zip(levels, config.down_block_types, strict=True):
            width, count = widths[level], layers[level]
            resnets = [resnet(skips[-1] if i == 0 else width, width) for i in range(count)]
            smaller = Downsample(width, padding=config.downsample_padding) if level < last else None
            down.append(Level(resnets, transformers(level, kind, count), down=smaller))
            skips += [width] * (count + (level < last))
        self.down_blocks = nn.ModuleList(down)

        middle = [resnet(widths[last], widths[last]) for _ in range(2)]
        self.mid_block = Level(middle, transformers(last, "CrossAttn", 1))

        up, inner = [], widths[last]
        for level, kind in zip(reversed(levels), config.up_block_types, strict=True):
            width, count = widths[level], layers[level] + 1
            resnets = [resnet((inner if i == 0 else width) + skips.pop(), width) for i in range(count)]
            larger = Upsample(width) if level > 0 else None
            up.append(Level(resnets, transformers(level, kind, count), up=larger))
            inner = width
        self.up_blocks = nn.ModuleList(up)

        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        config = self.config
        features = sinusoids(
            timestep,
            config.block_out_channels[0],
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        time = self.time_embedding(features.to(sample.dtype))

        x = self.conv_in(sample)
        skips = [x]
        for level in _levels(self.down_blocks):
            for i, resnet in enumerate(level.resnets):
                x = resnet(x, time)
                if level.attentions is not None:
                    x = level.attentions[i](x, context)
                skips.append(x)
            if level.downsamplers is not None:
                x = level.downsamplers[0](x)
                skips.append(x)

        first, second = self.mid_block.resnets
        assert self.mid_block.attentions is not None
        x = second(self.mid_block.attentions[0](first(x, time), context), time)

        for level in _levels(self.up_blocks):
            for i, resnet in enumerate(level.resnets):
                x = resnet(torch.cat([x, skips.pop()], dim=1), time)
                if level.attentions is not None:
                    x = level.attentions[i](x, context)
            if level.upsamplers is not None:
                x = level.upsamplers[0](x, skips[-1].shape[2:])

        return self.conv_out(F.silu(self.conv_norm_out(x)))


def _levels(blocks: nn.ModuleList) -> list[Level]:
    return cast(list[Level], list(blocks))
