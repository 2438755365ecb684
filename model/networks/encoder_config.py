"""Define the config that a U-Net and a ControlNet share. The fields are diffusers'."""

from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

from ldmrt.model.config import RawConfig, from_config, positive, within
from ldmrt.runtime.errors import LdmrtError

from .blocks import known_activation

C = TypeVar("C", bound="EncoderConfig")
V = TypeVar("V")
PerLevel = int | tuple[int, ...]  # one number, or one a level
Depths = int | tuple[int | tuple[int, ...], ...]  # of the transformers: one, or one a level, or one a layer of a level

DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
MIDDLE = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")
ADDITIONS = (None, "text_time")
TIMES = ("default", "scale_shift")  # how a resnet is told the time: by an addition, or by scale and shift
CLASSES = (None, "timestep")  # a table of num_class_embeds, or a number embedded as the time is

# Config keys of diffusers that ask for something else than the blocks below, with the value that asks for nothing.
NEUTRAL: RawConfig = {
    "addition_embed_type_num_heads": 64,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_scale_factor": 1,
}


@dataclass(frozen=True)
class EncoderConfig:
    """Holds the fields that a U-Net's and a ControlNet's config have in common; the defaults are diffusers'."""

    part: ClassVar[str]
    neutral: ClassVar[RawConfig]
    middles: ClassVar[tuple[str | None, ...]] = MIDDLE

    in_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    act_fn: str = "silu"
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
    only_cross_attention: bool | tuple[bool, ...] = False
    use_linear_projection: bool = False
    upcast_attention: bool | None = False
    resnet_time_scale_shift: str = TIMES[0]
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None

    def __post_init__(self) -> None:
        """Refuse sizes and blocks that no network can be built of, or that are unsupported."""
        positive(self.part, self, "in_channels", "block_out_channels", "layers_per_block", "norm_num_groups")
        positive(self.part, self, "cross_attention_dim", "attention_head_dim", "num_attention_heads")
        positive(self.part, self, "addition_time_embed_dim", "projection_class_embeddings_input_dim")
        positive(self.part, self, "num_class_embeds")
        self.check_blocks("down_block_types", DOWN)
        known_activation(self.part, self, "act_fn")
        features = min(self.block_out_channels[0], self.addition_time_embed_dim or self.block_out_channels[0]) // 2
        within(self.part, self, "norm_eps", 1e-12, 1.0)
        within(self.part, self, "freq_shift", 0, features - 1)
        within(self.part, self, "downsample_padding", 0, 1)
        choices = {"mid_block_type": self.middles, "addition_embed_type": ADDITIONS, "class_embed_type": CLASSES}
        choices["resnet_time_scale_shift"] = TIMES
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                problem = f"unsupported {name} in the config"
                raise LdmrtError(self.part, problem, expected=allowed, found=getattr(self, name))
        for width, heads in zip(self.block_out_channels, self.heads, strict=True):
            if width % self.norm_num_groups or width < heads:
                expected = f"a multiple of {self.norm_num_groups} groups and one for each of {heads} heads"
                raise LdmrtError(self.part, f"block_out_channels {width} cannot be split", expected=expected)
        self.per_level(self.layers_per_block)
        self.per_level(self.only_cross_attention)
        for level in range(len(self.block_out_channels)):
            self.depths(level)
        if self.addition_embed_type:
            for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
                if getattr(self, name) is None:
                    raise LdmrtError(self.part, f"config lacks {name}", hint=f"{self.addition_embed_type} needs it")

    @classmethod
    def read(cls: type[C], config: RawConfig) -> C:
        """Read the content of diffusers' config.json; see `from_config`.

        `cross_attention_dim` may be a list with one width a level: the levels with attention must agree.
        """
        widths = config.get("cross_attention_dim")
        if not isinstance(widths, (list, tuple)):
            return from_config(cls, config, cls.neutral, cls.part)
        read = from_config(cls, {**config, "cross_attention_dim": 1}, cls.neutral, cls.part)
        each: tuple[object, ...] = read.per_level(tuple(widths))
        width, *others = [each[level] for level in sorted(read.attending)] or [each[0]]
        if type(width) is not int or any(type(other) is not int or other != width for other in others):
            expected = "one number for all levels with attention"
            raise LdmrtError(cls.part, "config has an invalid cross_attention_dim", expected=expected, found=widths)
        return replace(read, cross_attention_dim=width)

    def check_blocks(self, name: str, allowed: tuple[str, ...]) -> None:
        """Refuse a tuple of blocks that has not one block a level, or another block than those `allowed`."""
        types, levels = getattr(self, name), len(self.block_out_channels)
        if len(types) != levels:
            problem = f"{name} does not fit block_out_channels"
            raise LdmrtError(self.part, problem, expected=f"{levels} blocks", found=types)
        if unknown := [block for block in types if block not in allowed]:
            problem = f"unsupported {unknown[0]} in {name}"
            raise LdmrtError(self.part, problem, expected=" or ".join(allowed))

    def per_level(self, value: V | tuple[V, ...]) -> tuple[V, ...]:
        """Repeat a value once a level; a tuple must have one a level already."""
        levels = len(self.block_out_channels)
        values = value if isinstance(value, tuple) else (value,) * levels
        if len(values) != levels:
            problem = "config has a list that does not fit block_out_channels"
            raise LdmrtError(self.part, problem, expected=f"{levels} values", found=values)
        return values

    @property
    def heads(self) -> tuple[int, ...]:
        """The number of attention heads of each level."""
        return self.per_level(self.num_attention_heads or self.attention_head_dim)

    @property
    def only_cross(self) -> tuple[bool, ...]:
        """Whether the transformers of each level attend to the context alone; that of the middle never does."""
        return self.per_level(self.only_cross_attention)

    @property
    def layers(self) -> tuple[int, ...]:
        """The number of resnets of each level on the way down."""
        return self.per_level(self.layers_per_block)

    @property
    def class_act_fn(self) -> str:
        """The activation in the embedding of a class that is a number, whatever that of the blocks is."""
        return "silu"

    @property
    def attending(self) -> set[int]:
        """The indices of levels that read the context."""
        levels = {level for level, kind in enumerate(self.down_block_types) if kind == DOWN[0]}
        return levels | ({len(self.block_out_channels) - 1} if self.mid_block_type == MIDDLE[0] else set())

    @property
    def features(self) -> list[tuple[int, int]]:
        """The places where an adapter's features are added, one in each level and one in the middle.

        Each is the width there, and the latents that one value stands for along one side. A level without attention
        has halved its size by then.
        """
        last, widths = len(self.block_out_channels) - 1, self.block_out_channels
        halved = [kind != DOWN[0] and level < last for level, kind in enumerate(self.down_block_types)]
        places = [(width, 2 ** (level + halved[level])) for level, width in enumerate(widths)]
        return places + ([(widths[last], 2**last)] if self.mid_block_type else [])

    def depths(self, level: int) -> tuple[int, ...]:
        """Return the depth of each transformer of a level on the way down."""
        depths: tuple[PerLevel, ...] = self.per_level(self.transformer_layers_per_block)
        return self.each_layer(depths[level], self.layers[level])

    def each_layer(self, depth: PerLevel, layers: int) -> tuple[int, ...]:
        """Repeat a depth for each layer of a level; of a tuple, take the first so many."""
        depths = depth if isinstance(depth, tuple) else (depth,) * layers
        if len(depths) < layers or min(depths) < 0:
            problem = "config has an invalid transformer_layers_per_block"
            raise LdmrtError(self.part, problem, expected=f"{layers} depths of a level", found=depth)
        return depths[:layers]
