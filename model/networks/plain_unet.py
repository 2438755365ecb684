"""Define the U-Net that reads no context: it is told the time, and perhaps a class (Ho et al. 2020, arXiv:2006.11239).

State-dict keys and config fields are those of diffusers' UNet2DModel.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from ldmrt.model.config import RawConfig, positive
from ldmrt.runtime.errors import LdmrtError

from . import encoder_config
from .attention import SpatialAttention
from .encoder_config import SIZES, TIMES
from .unet_body import BodyConfig, UNetBody

# Config keys of diffusers that ask for something else than the blocks below, with the value that asks for nothing.
NEUTRAL: RawConfig = {
    **encoder_config.NEUTRAL,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
}


@dataclass(frozen=True)
class PlainUNetConfig(BodyConfig):
    """Holds the fields of UNet2DModel's config that matter here; the defaults are diffusers'."""

    neutral: ClassVar[RawConfig] = NEUTRAL
    downs: ClassVar[tuple[str, str]] = ("AttnDownBlock2D", "DownBlock2D")
    ups: ClassVar[tuple[str, str]] = ("AttnUpBlock2D", "UpBlock2D")
    middles: ClassVar[tuple[str | None, ...]] = ("UNetMidBlock2D", None)

    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    down_block_types: tuple[str, ...] = ("DownBlock2D",) + ("AttnDownBlock2D",) * 3
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D",) * 3 + ("UpBlock2D",)
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    downsample_type: str = SIZES[0]
    upsample_type: str = SIZES[0]
    attention_head_dim: int | None = 8  # the width of a head here; None for one head
    attn_norm_num_groups: int | None = None
    add_attention: bool = True  # in the middle
    num_train_timesteps: int | None = None  # of the training; the network is the same

    def __post_init__(self) -> None:
        """Refuse what `BodyConfig` refuses, and attention that no network can be built of."""
        super().__post_init__()
        positive(self.part, self, "attention_head_dim", "attn_norm_num_groups")
        self.check_choice("downsample_type", SIZES)
        self.check_choice("upsample_type", SIZES)
        widths = self.block_out_channels
        attending = {level for level, kind in enumerate(self.down_block_types) if kind == self.downs[0]}
        attending |= {level for level, kind in enumerate(reversed(self.up_block_types)) if kind == self.ups[0]}
        attending |= {len(widths) - 1} if self.middle[1] else set()
        for level in sorted(attending):
            if widths[level] < (self.attention_head_dim or 1):
                expected = f"attention_head_dim, {self.attention_head_dim}, or more"
                raise LdmrtError(self.part, f"block_out_channels {widths[level]} cannot be split", expected=expected)
        if self.middle[1] and self.middle_groups is not None and widths[-1] % self.middle_groups:
            expected = f"a multiple of attn_norm_num_groups, {self.middle_groups}"
            raise LdmrtError(self.part, f"block_out_channels {widths[-1]} cannot be split", expected=expected)

    @property
    def middle(self) -> tuple[int, tuple[int, ...]]:
        """The number of resnets in the middle, and one attention between them if there is one."""
        return (0, ()) if self.mid_block_type is None else (2, (1,) * self.add_attention)

    @property
    def middle_groups(self) -> int | None:
        """Groups of the norm before the middle's attention; None for no norm."""
        own = self.norm_num_groups if self.resnet_time_scale_shift == TIMES[0] else None
        return self.attn_norm_num_groups or own

    @property
    def outer_act_fn(self) -> str:
        """The activation outside the blocks, whatever theirs is."""
        return "silu"

    def depths(self, level: int) -> tuple[int, ...]:
        """Return 1 for each attention of a level on the way down."""
        return (1,) * self.layers[level]

    def up_depths(self, level: int) -> tuple[int, ...]:
        """Return 1 for each attention of a level on the way up."""
        return (1,) * (self.layers[level] + 1)


def attention(config: PlainUNetConfig, level: int, _: int, *, middle: bool) -> SpatialAttention:
    """Build the attention over the pixels of a level, or of the middle."""
    groups = config.middle_groups if middle else config.norm_num_groups
    width = config.block_out_channels[level]
    return SpatialAttention(width, groups=groups, eps=config.norm_eps, head_width=config.attention_head_dim)


class PlainUNet(UNetBody):
    """Predicts the noise in images or latents from the timestep, and perhaps a class, alone."""

    config: PlainUNetConfig

    def __init__(self, config: PlainUNetConfig) -> None:
        """Build the network, with attention over the pixels in some levels."""
        super().__init__(config, partial(attention, config))

    @classmethod
    def from_config(cls, config: RawConfig) -> "PlainUNet":
        """Build the network of a diffusers config.json, with random weights."""
        return cls(PlainUNetConfig.read(config))

    def forward(self, sample: Tensor, timestep: Tensor, *, class_labels: Tensor | None = None) -> Tensor:
        """Predict once.

        Args:
            sample: Images or latents (B, in_channels, h, w), scaled as the sampler says; a model of super-resolution
                takes the small image after them, as further channels.
            timestep: Model times (B,), 0 to 999 for most models.
            class_labels: Classes (B,), int64 below num_class_embeds, or numbers that are embedded as the time is where
                class_embed_type is "timestep".

        Returns:
            The prediction (B, out_channels, h, w), of which a model of learned variance has the variance's numbers
            after it, as further channels (Nichol & Dhariwal 2021, arXiv:2102.09672).

        Raises:
            LdmrtError: The class is missing, not expected by the config, or of another type.
        """
        time = self.time(sample, timestep, class_labels=class_labels)
        return self.predict(2 * sample - 1 if self.config.center_input_sample else sample, time)
