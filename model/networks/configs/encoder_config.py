"""Define the config that all U-Nets and ControlNets share. The fields are diffusers'."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from ldmrt.model.config import RawConfig, from_config, positive, within
from ldmrt.model.networks.blocks import known_activation
from ldmrt.runtime.errors import LdmrtError

C = TypeVar("C", bound="EncoderConfig")
V = TypeVar("V")
PerLevel = int | tuple[int, ...]  # one number, or one a level

TIMES = ("default", "scale_shift")  # how a resnet is told the time: by an addition, or by scale and shift
SIZES = ("conv", "resnet")  # what halves or doubles the size in levels with attention
FEATURES = ("positional", "fourier")  # of the time: sinusoids, or those of a noise level at random frequencies
CLASSES = (None, "timestep")  # a table of num_class_embeds, or a number embedded as the time is

# Config keys of diffusers that ask for something else than the blocks below, with the value that asks for nothing.
NEUTRAL: RawConfig = {"mid_block_scale_factor": 1}


@dataclass(frozen=True)
class EncoderConfig(ABC):
    """Holds the fields that the configs of all U-Nets and ControlNets have in common."""

    part: ClassVar[str]
    neutral: ClassVar[RawConfig]
    downs: ClassVar[tuple[str, ...]]  # a level's block with attention, and the one without; perhaps others so
    middles: ClassVar[tuple[str | None, ...]]

    in_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    act_fn: str = "silu"
    down_block_types: tuple[str, ...] = ()
    mid_block_type: str | None = None
    block_out_channels: tuple[int, ...] = ()
    layers_per_block: PerLevel = 2
    downsample_padding: int = 1
    norm_num_groups: int | None = 32  # None: a quarter of the channels, at most 32
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = TIMES[0]
    class_embed_type: str | None = None
    num_class_embeds: int | None = None

    def __post_init__(self) -> None:
        """Refuse sizes and blocks that no network can be built of, or that are unsupported."""
        positive(self.part, self, "in_channels", "block_out_channels", "layers_per_block", "norm_num_groups")
        positive(self.part, self, "num_class_embeds")
        self.check_blocks("down_block_types", self.downs)
        known_activation(self.part, self, "act_fn")
        within(self.part, self, "norm_eps", 1e-12, 1.0)
        within(self.part, self, "freq_shift", 0, self.block_out_channels[0] // 2 - 1)
        within(self.part, self, "downsample_padding", 0, 1)
        self.check_choice("mid_block_type", self.middles)
        self.check_choice("resnet_time_scale_shift", TIMES)
        self.check_choice("class_embed_type", CLASSES)
        if self.norm_num_groups is None and not self.groups_follow_widths:
            raise LdmrtError(self.part, "config has an invalid norm_num_groups", expected="a number", found=None)
        for width, groups in self.norms():
            if not groups or width % groups:
                expected = f"a multiple of {groups} groups" if groups else "at least 4"
                widths = self.block_out_channels
                found = None if width in widths else f"{widths}, of which two side by side are {width}"
                raise LdmrtError(
                    self.part, f"block_out_channels {width} cannot be split", expected=expected, found=found
                )
        self.per_level(self.layers_per_block)

    @classmethod
    def read(cls: type[C], config: RawConfig) -> C:
        """Read the content of diffusers' config.json; see `from_config`."""
        return from_config(cls, config, cls.neutral, cls.part)

    def check_blocks(self, name: str, allowed: tuple[str, ...]) -> None:
        """Refuse a tuple of blocks that has not one block a level, or another block than those `allowed`."""
        types, levels = getattr(self, name), len(self.block_out_channels)
        if len(types) != levels:
            problem = f"{name} does not fit block_out_channels"
            raise LdmrtError(self.part, problem, expected=f"{levels} blocks", found=types)
        if unknown := [block for block in types if block not in allowed]:
            problem = f"unsupported {unknown[0]} in {name}"
            raise LdmrtError(self.part, problem, expected=" or ".join(allowed))

    def check_choice(self, name: str, allowed: tuple[str | None, ...]) -> None:
        """Refuse another value of a field than those `allowed`."""
        if getattr(self, name) not in allowed:
            problem = f"unsupported {name} in the config"
            raise LdmrtError(self.part, problem, expected=allowed, found=getattr(self, name))

    def per_level(self, value: V | tuple[V, ...]) -> tuple[V, ...]:
        """Repeat a value once a level; a tuple must have one a level already."""
        levels = len(self.block_out_channels)
        values = value if isinstance(value, tuple) else (value,) * levels
        if len(values) != levels:
            problem = "config has a list that does not fit block_out_channels"
            raise LdmrtError(self.part, problem, expected=f"{levels} values", found=values)
        return values

    @property
    def groups_follow_widths(self) -> bool:
        """Whether the network has no norm of `norm_num_groups` that could not do without it."""
        return False

    def groups(self, width: int) -> int:
        """Return the number of groups in which so many channels are normalised."""
        return self.norm_num_groups or min(width // 4, 32)

    def norms(self) -> list[tuple[int, int]]:
        """Return the channels and groups of the norms that must divide."""
        return [(width, self.groups(width)) for width in self.block_out_channels]

    @property
    def layers(self) -> tuple[int, ...]:
        """The number of resnets of each level on the way down."""
        return self.per_level(self.layers_per_block)

    @abstractmethod
    def depths(self, level: int) -> tuple[int, ...]:
        """Return the depth of each attention of a level on the way down, if the level has attention."""

    @property
    @abstractmethod
    def middle(self) -> tuple[int, tuple[int, ...]]:
        """The number of resnets in the middle, and the depths of the attentions between them."""

    @property
    def outer_act_fn(self) -> str:
        """The activation outside the blocks: in the embedding of the time, and before the last convolution."""
        return self.act_fn

    @property
    def downsample_type(self) -> str:
        """One of `SIZES`: what halves the size of a level with attention."""
        return SIZES[0]

    @property
    def upsample_type(self) -> str:
        """One of `SIZES`: what doubles the size of a level with attention."""
        return SIZES[0]

    @property
    def time_embedding_type(self) -> str:
        """One of `FEATURES`: of which the embedding of the time is made."""
        return FEATURES[0]

    @property
    def mid_block_scale_factor(self) -> float:
        """What the sums in the middle's blocks are divided by."""
        return 1.0

    @property
    def class_act_fn(self) -> str:
        """The activation in the embedding of a class that is a number, whatever that of the blocks is."""
        return "silu"

    @property
    def addition_embed_type(self) -> str | None:
        """The kind of the embeddings that are added to the time's; None for networks that have no such field."""
        return None

    @property
    def addition_time_embed_dim(self) -> int | None:
        """The width of each embedded size among the additions to the time."""
        return None

    @property
    def projection_class_embeddings_input_dim(self) -> int | None:
        """The width of all additions to the time, before they are embedded."""
        return None
