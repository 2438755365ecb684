"""Define the config of networks that read a context, such as prompt embeddings. The fields are diffusers'."""

from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

from ldmrt.model.config import RawConfig, from_config, positive, within
from ldmrt.runtime.errors import LdmrtError

from . import encoder_config
from .encoder_config import EncoderConfig, PerLevel

C = TypeVar("C", bound="ContextConfig")
Depths = int | tuple[int | tuple[int, ...], ...]  # of the transformers: one, or one a level, or one a layer of a level

DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
MIDDLE = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")
ADDITIONS = (None, "text_time")

# Config keys of diffusers that ask for something else than the blocks below, with the value that asks for nothing.
NEUTRAL: RawConfig = {
    **encoder_config.NEUTRAL,
    "addition_embed_type_num_heads": 64,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
}


@dataclass(frozen=True)
class ContextConfig(EncoderConfig):
    """Holds the fields that UNet2DConditionModel's and ControlNetModel's configs share; the defaults are diffusers'."""

    downs: ClassVar[tuple[str, str]] = DOWN
    middles: ClassVar[tuple[str | None, ...]] = MIDDLE

    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    cross_attention_dim: int = 1280
    transformer_layers_per_block: Depths = 1
    attention_head_dim: PerLevel = 8  # the number of heads: diffusers keeps an old misnomer
    num_attention_heads: PerLevel | None = None
    only_cross_attention: bool | tuple[bool, ...] = False
    use_linear_projection: bool = False
    upcast_attention: bool | None = False
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None

    def __post_init__(self) -> None:
        """Refuse what `EncoderConfig` refuses, and attention and additions that no network can be built of."""
        super().__post_init__()
        positive(self.part, self, "cross_attention_dim", "attention_head_dim", "num_attention_heads")
        positive(self.part, self, "addition_time_embed_dim", "projection_class_embeddings_input_dim")
        if self.addition_time_embed_dim is not None:
            within(self.part, self, "freq_shift", 0, self.addition_time_embed_dim // 2 - 1)
        self.check_choice("addition_embed_type", ADDITIONS)
        for width, heads in zip(self.block_out_channels, self.heads, strict=True):
            if width < heads:
                expected = f"one for each of {heads} heads"
                raise LdmrtError(self.part, f"block_out_channels {width} cannot be split", expected=expected)
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

    @property
    def heads(self) -> tuple[int, ...]:
        """The number of attention heads of each level."""
        return self.per_level(self.num_attention_heads or self.attention_head_dim)

    @property
    def only_cross(self) -> tuple[bool, ...]:
        """Whether the transformers of each level attend to the context alone; that of the middle never does."""
        return self.per_level(self.only_cross_attention)

    @property
    def middle(self) -> tuple[int, tuple[int, ...]]:
        """The number of resnets in the middle, and the depths of the transformers between them."""
        if self.mid_block_type == MIDDLE[0]:
            return 2, self.depths(len(self.block_out_channels) - 1)[:1]
        return (1 if self.mid_block_type == MIDDLE[1] else 0), ()

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
