"""The half of the U-Net that ControlNet copies (Zhang et al. 2023, arXiv:2302.05543): time, down blocks and middle.

State-dict keys and config fields are diffusers'.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from ldmrt.runtime import LdmrtError

from .attention import Transformer2D
from .blocks import Downsample, Level, ResnetBlock, TimestepEmbedding, Upsample, sinusoids
from .config import from_config, positive

C = TypeVar("C", bound="EncoderConfig")
PerLevel = int | tuple[int, ...]  # one number, or one a level
Depths = int | tuple[int | tuple[int, ...], ...]  # of the transformers: one, or one a level, or one a layer of a level

DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
MIDDLE = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")
ADDITIONS = (None, "text_time")

# Config keys of diffusers that ask for something else than the blocks below, with the value that asks for nothing.
NEUTRAL: dict[str, Any] = {
    "act_fn": ("silu", "swish"),  # two names of one function
    "addition_embed_type_num_heads": 64,
    "class_embed_type": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_scale_factor": 1,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
}


@dataclass(frozen=True)
class EncoderConfig:
    """What a U-Net's and a ControlNet's config have in common; the defaults are diffusers'."""

    part: ClassVar[str]
    neutral: ClassVar[dict[str, Any]]
    middles: ClassVar[tuple[str | None, ...]] = MIDDLE

    in_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: PerLevel = 2
    downsample_padding: int = 1
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: Depths = 1
    attention_head_dim: PerLevel = 8  # the number of heads: diffusers keeps an old misnomer
    num_attention_heads: PerLevel | None = None
    use_linear_projection: bool = False
    upcast_attention: bool | None = False
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None

    def __post_init__(self) -> None:
        positive(self.part, self, "in_channels", "block_out_channels", "layers_per_block", "norm_num_groups")
        positive(self.part, self, "cross_attention_dim", "attention_head_dim", "num_attention_heads")
        positive(self.part, self, "addition_time_embed_dim", "projection_class_embeddings_input_dim")
        self.check_blocks("down_block_types", DOWN)
        for name, allowed in (("mid_block_type", self.middles), ("addition_embed_type", ADDITIONS)):
            if getattr(self, name) not in allowed:
                problem = f"config asks for {name}, which is not here"
                raise LdmrtError(self.part, problem, expected=allowed, found=getattr(self, name))
        for width, heads in zip(self.block_out_channels, self.heads, strict=True):
            if width % self.norm_num_groups or width < heads:
                expected = f"a multiple of {self.norm_num_groups} groups and one for each of {heads} heads"
                raise LdmrtError(self.part, f"block_out_channels {width} cannot be split", expected=expected)
        self.per_level(self.layers_per_block)
        for level in range(len(self.block_out_channels)):
            self.depths(level)
        if self.addition_embed_type:
            for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
                if getattr(self, name) is None:
                    raise LdmrtError(self.part, f"config lacks {name}", hint=f"{self.addition_embed_type} needs it")

    @classmethod
    def read(cls: type[C], config: dict[str, Any]) -> C:
        """From the dict in diffusers' config.json."""
        asked = config.get("cross_attention_dim")
        if not isinstance(asked, (list, tuple)):
            return from_config(cls, config, cls.neutral, cls.part)
        # One a level, of which only the levels with attention make use. All of them read one context.
        read = from_config(cls, {**config, "cross_attention_dim": 1}, cls.neutral, cls.part)
        each = read.per_level(tuple(asked))
        used = [each[level] for level in sorted(read.attending)] or [each[0]]
        if any(type(width) is not int or width != used[0] for width in used):
            expected = "one number for all levels with attention"
            raise LdmrtError(cls.part, "config has an impossible cross_attention_dim", expected=expected, found=asked)
        return replace(read, cross_attention_dim=used[0])

    def check_blocks(self, name: str, allowed: tuple[str, ...]) -> None:
        """One known block a level."""
        types, levels = getattr(self, name), len(self.block_out_channels)
        if len(types) != levels:
            problem = f"{name} does not fit block_out_channels"
            raise LdmrtError(self.part, problem, expected=f"{levels} blocks", found=types)
        if unknown := [block for block in types if block not in allowed]:
            problem = f"{name} asks for {unknown[0]}, which is not here"
            raise LdmrtError(self.part, problem, expected=" or ".join(allowed))

    def per_level(self, value: Any) -> tuple[Any, ...]:
        """`value` once a level."""
        levels = len(self.block_out_channels)
        values = value if isinstance(value, tuple) else (value,) * levels
        if len(values) != levels:
            problem = "a list does not fit block_out_channels"
            raise LdmrtError(self.part, problem, expected=f"{levels} values", found=values)
        return values

    @property
    def heads(self) -> tuple[int, ...]:
        """The number of attention heads of each level."""
        return self.per_level(self.num_attention_heads or self.attention_head_dim)

    @property
    def layers(self) -> tuple[int, ...]:
        """The number of resnets of each level on the way down."""
        return self.per_level(self.layers_per_block)

    @property
    def attending(self) -> set[int]:
        """The levels that read the context."""
        levels = {level for level, kind in enumerate(self.down_block_types) if kind == DOWN[0]}
        return levels | ({len(self.block_out_channels) - 1} if self.mid_block_type == MIDDLE[0] else set())

    @property
    def features(self) -> list[tuple[int, int]]:
        """Where an adapter's features are added, in each level and in the middle: the width there, and latents a value
        of it, along one side. A level without attention has halved its size by then.
        """
        last, widths = len(self.block_out_channels) - 1, self.block_out_channels
        halved = [kind != DOWN[0] and level < last for level, kind in enumerate(self.down_block_types)]
        places = [(width, 2 ** (level + halved[level])) for level, width in enumerate(widths)]
        return places + ([(widths[last], 2**last)] if self.mid_block_type else [])

    def depths(self, level: int) -> tuple[int, ...]:
        """The depth of each transformer of a level on the way down."""
        return self.each_layer(self.per_level(self.transformer_layers_per_block)[level], self.layers[level])

    def each_layer(self, depth: PerLevel, layers: int) -> tuple[int, ...]:
        """`depth` once a layer of a level."""
        depths = depth if isinstance(depth, tuple) else (depth,) * layers
        if len(depths) < layers or min(depths) < 0:
            problem = "config has an impossible transformer_layers_per_block"
            raise LdmrtError(self.part, problem, expected=f"{layers} depths of a level", found=depth)
        return depths[:layers]


def build_level(
    config: EncoderConfig, level: int, inner: Sequence[int], depths: Sequence[int] = (), *, down: bool = False,
    up: bool = False,
) -> Level:  # fmt: skip
    """Resnets from each width of `inner` to the level's, transformers of these depths, and a change of size."""
    width = config.block_out_channels[level]
    resnets = [
        ResnetBlock(
            channels,
            width,
            groups=config.norm_num_groups,
            eps=config.norm_eps,
            time_channels=4 * config.block_out_channels[0],
        )
        for channels in inner
    ]
    smaller = Downsample(width, padding=config.downsample_padding) if down else None
    larger = Upsample(width) if up else None
    transformers = [
        Transformer2D(
            width,
            config.heads[level],
            config.cross_attention_dim,
            depth=depth,
            groups=config.norm_num_groups,
            linear=config.use_linear_projection,
            upcast=bool(config.upcast_attention),
        )
        for depth in depths
    ]
    return Level(resnets, transformers or None, down=smaller, up=larger)


class UNetEncoder(nn.Module):
    """What a U-Net and a ControlNet do first."""

    config: EncoderConfig

    def __init__(self, config: EncoderConfig, *, condition: int | None = None) -> None:
        """`condition` is the width of what LCM adds to the time."""
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0], condition=condition)
        if config.addition_embed_type and config.projection_class_embeddings_input_dim:
            self.add_embedding = TimestepEmbedding(config.projection_class_embeddings_input_dim, 4 * widths[0])

        self.down_blocks = nn.ModuleList()
        self.skip_channels = [widths[0]]  # of each skip connection, in the order that they are made
        for level, (kind, width, layers) in enumerate(zip(config.down_block_types, widths, config.layers, strict=True)):
            inner = [self.skip_channels[-1]] + [width] * (layers - 1)
            depths = config.depths(level) if kind == DOWN[0] else ()
            self.down_blocks.append(build_level(config, level, inner, depths, down=level < last))
            self.skip_channels += [width] * (layers + (level < last))

        self.mid_block: Level | None = None
        if config.mid_block_type == MIDDLE[0]:
            self.mid_block = build_level(config, last, [widths[last]] * 2, config.depths(last)[:1])
        elif config.mid_block_type == MIDDLE[1]:
            self.mid_block = build_level(config, last, [widths[last]])

    def time(
        self,
        sample: Tensor,
        timestep: Tensor,
        condition: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        """What every resnet is told: (B, 4 * width)."""
        config, dtype = self.config, sample.dtype
        if condition is not None and self.time_embedding.cond_proj is None:
            raise LdmrtError(config.part, "timestep_cond is given, but the config has no time_cond_proj_dim")
        features = self._sinusoids(timestep, config.block_out_channels[0]).to(dtype)
        time = self.time_embedding(features, None if condition is None else condition.to(dtype))
        if config.addition_embed_type is None:
            return time
        if text_embeds is None or time_ids is None:
            missing = "text_embeds" if text_embeds is None else "time_ids"
            raise LdmrtError(config.part, f"{missing} is missing", hint=f"addition_embed_type {ADDITIONS[1]} needs it")
        sizes = self._sinusoids(time_ids.flatten(), config.addition_time_embed_dim or 0)
        sizes = sizes.unflatten(0, (-1, time_ids.shape[1])).flatten(1)
        added = torch.cat([text_embeds.to(dtype), sizes.to(dtype)], dim=-1)
        if added.shape[1] != config.projection_class_embeddings_input_dim:
            expected = f"{config.projection_class_embeddings_input_dim} values of projection_class_embeddings_input_dim"
            found = f"{text_embeds.shape[1]} of text_embeds and {sizes.shape[1]} of time_ids"
            raise LdmrtError(config.part, "text_embeds and time_ids do not fit", expected=expected, found=found)
        return time + self.add_embedding(added)

    def down(
        self, x: Tensor, time: Tensor, context: Tensor, added: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """The down blocks: what comes out, and the skips. `added` is one residual a level, of a T2I-Adapter."""
        skips = [x]
        for i, level in enumerate(levels(self.down_blocks)):
            extra = added[i] if i < len(added) else None
            for j, resnet in enumerate(level.resnets):
                x = resnet(x, time)
                if level.attentions is not None:
                    x = level.attentions[j](x, context)
                    if extra is not None and j == len(level.resnets) - 1:
                        x = x + extra
                skips.append(x)
            if level.downsamplers is not None:
                x = level.downsamplers[0](x)
                skips.append(x)
            if extra is not None and level.attentions is None:
                x = skips[-1] = x + extra  # the skip too: diffusers adds in place
        return x, skips

    def middle(self, x: Tensor, time: Tensor, context: Tensor, added: Sequence[Tensor] = ()) -> Tensor:
        """The middle, and the residual that an adapter has for it, if any."""
        if self.mid_block is None:
            return x
        x = self.mid_block.resnets[0](x, time)
        if self.mid_block.attentions is not None:
            x = self.mid_block.resnets[1](self.mid_block.attentions[0](x, context), time)
        beyond = added[len(self.down_blocks) :]
        # diffusers leaves out a residual of another shape
        return x + beyond[0] if beyond and beyond[0].shape == x.shape else x

    def _sinusoids(self, t: Tensor, channels: int) -> Tensor:
        return sinusoids(t, channels, flip_sin_to_cos=self.config.flip_sin_to_cos, freq_shift=self.config.freq_shift)


def levels(blocks: nn.ModuleList) -> list[Level]:
    """The levels in a list of modules."""
    return cast(list[Level], list(blocks))
