"""Define the U-Net that reads no context: it is told the time, and perhaps a class (Ho et al. 2020, arXiv:2006.11239).

State-dict keys and config fields are those of diffusers' UNet2DModel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from ldmrt.model.config import RawConfig, positive, within
from ldmrt.runtime.errors import LdmrtError

from .attention import SpatialAttention
from .blocks import Level, ResnetBlock
from .configs.encoder_config import FEATURES, SIZES, TIMES
from .score import skip_levels
from .score.skip_levels import IMAGE, SkipDown, SkipUp
from .unet_body import BodyConfig, UNetBody
from .unet_encoder import Attend, levels, resnets_of

# Config keys of diffusers that ask for something else than the blocks below, with the value that asks for nothing.
NEUTRAL: RawConfig = {
    "time_embedding_dim": None,
}


@dataclass(frozen=True)
class PlainUNetConfig(BodyConfig):
    """Holds the fields of UNet2DModel's config that matter here; the defaults are diffusers'."""

    neutral: ClassVar[RawConfig] = NEUTRAL
    downs: ClassVar[tuple[str, ...]] = ("AttnDownBlock2D", "DownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D")
    ups: ClassVar[tuple[str, ...]] = ("AttnUpBlock2D", "UpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D")
    middles: ClassVar[tuple[str | None, ...]] = ("UNetMidBlock2D", None)

    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = FEATURES[0]
    down_block_types: tuple[str, ...] = ("DownBlock2D",) + ("AttnDownBlock2D",) * 3
    mid_block_type: str | None = "UNetMidBlock2D"
    mid_block_scale_factor: float = 1
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
        self._check_skip_levels()
        super().__post_init__()
        positive(self.part, self, "attention_head_dim", "attn_norm_num_groups")
        self.check_choice("downsample_type", SIZES)
        self.check_choice("upsample_type", SIZES)
        self.check_choice("time_embedding_type", FEATURES)
        within(self.part, self, "mid_block_scale_factor", 1e-3, 1e3)
        widths = self.block_out_channels
        attending = set[int]().union(*self.attending)
        attending |= {len(widths) - 1} if self.middle[1] else set()
        for level in sorted(attending):
            if widths[level] < (self.attention_head_dim or 1):
                expected = f"attention_head_dim, {self.attention_head_dim}, or more"
                raise LdmrtError(self.part, f"block_out_channels {widths[level]} cannot be split", expected=expected)
        if self.middle[1] and self.middle_groups is not None and widths[-1] % self.middle_groups:
            expected = f"a multiple of attn_norm_num_groups, {self.middle_groups}"
            raise LdmrtError(self.part, f"block_out_channels {widths[-1]} cannot be split", expected=expected)

    def _check_skip_levels(self) -> None:
        """Refuse levels with an image beside their features among others, and of images that have no three colours."""
        for name, kinds in (("down_block_types", self.down_block_types), ("up_block_types", self.up_block_types)):
            if others := [kind for kind in kinds if ("Skip" in kind) != self.skips]:
                beside = next(kind for kind in self.down_block_types + self.up_block_types if "Skip" in kind)
                problem = f"{others[0]} in {name} cannot be combined with {beside}"
                raise LdmrtError(self.part, problem, expected="Skip blocks alone, or none of them")
        for name in ("in_channels", "out_channels") if self.skips else ():
            if (found := getattr(self, name)) != IMAGE:
                raise LdmrtError(
                    self.part, f"config has an invalid {name}", expected=f"{IMAGE} beside Skip blocks", found=found
                )

    @property
    def skips(self) -> bool:
        """Whether the levels have an image beside their features."""
        return any("Skip" in kind for kind in self.down_block_types + self.up_block_types)

    @property
    def groups_follow_widths(self) -> bool:
        """Whether the network has no norm of `norm_num_groups` that could not do without it."""
        return self.skips

    def norms(self) -> list[tuple[int, int]]:
        """Return the channels and groups of the norms that must divide."""
        if not self.skips:
            return super().norms()
        widths, (down, up) = self.block_out_channels, self.attending
        pairs = [(width, self.groups(width)) for width in (widths[0], widths[-1])]
        pairs += [(width, skip_levels.groups_of(width)) for width in widths]
        for level, channels in enumerate(self.up_channels):
            pairs += [(a + b, skip_levels.up_groups(a, b, attends=level in up)) for a, b in channels]
        return pairs + [(widths[level], skip_levels.MOST) for level in sorted(down | up)]

    @property
    def attending(self) -> tuple[set[int], set[int]]:
        """The indices of the levels with attention, on the way down and on the way up."""
        levels = range(len(self.block_out_channels))
        down = zip(levels, self.down_block_types, strict=False)
        up = zip(levels, reversed(self.up_block_types), strict=False)
        return {at for at, kind in down if kind in self.downs[::2]}, {at for at, kind in up if kind in self.ups[::2]}

    @property
    def middle(self) -> tuple[int, tuple[int, ...]]:
        """The number of resnets in the middle, and one attention between them if there is one."""
        return (0, ()) if self.mid_block_type is None else (2, (1,) * self.add_attention)

    @property
    def middle_groups(self) -> int | None:
        """Groups of the norm before the middle's attention; None for no norm."""
        own = self.groups(self.block_out_channels[-1]) if self.resnet_time_scale_shift == TIMES[0] else None
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
    width = config.block_out_channels[level]
    groups: int | None = config.groups(width)
    scale = 1.0
    if middle:
        groups, scale = config.middle_groups, config.mid_block_scale_factor
    elif config.skips:
        groups, scale = skip_levels.MOST, skip_levels.SCALE
    return SpatialAttention(
        width, groups=groups, eps=config.norm_eps, head_width=config.attention_head_dim, scale=scale
    )


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

    def level_down(self, level: int, inner: Sequence[int], attend: Attend, depths: Sequence[int]) -> Level:
        """Build a level of the way down, see `UNetEncoder`."""
        config = self.config
        if not config.skips:
            return super().level_down(level, inner, attend, depths)
        attentions = [attend(level, depth, middle=False) for depth in depths]
        width, down = config.block_out_channels[level], level < len(config.block_out_channels) - 1
        return SkipDown(inner, width, self._skip_resnets(width), attentions or None, down=down)

    def level_up(self, level: int, channels: Sequence[tuple[int, int]], attend: Attend, depths: Sequence[int]) -> Level:
        """Build a level of the way up, see `UNetBody`."""
        config = self.config
        if not config.skips:
            return super().level_up(level, channels, attend, depths)
        attention = attend(level, 1, middle=False) if depths else None
        width = config.block_out_channels[level]
        return SkipUp(channels, width, self._skip_resnets(width), attention, eps=config.norm_eps, up=level > 0)

    def _skip_resnets(self, width: int) -> "partial[ResnetBlock]":
        """Return what builds the resnets of a level with an image beside its features."""
        resnets = resnets_of(self.config, width, scale=skip_levels.SCALE)
        return partial(resnets, outer_groups=skip_levels.groups_of(width))

    def beside(self, sample: Tensor, time: Tensor) -> Tensor:
        """Predict as `predict` does, of levels that have the image beside their features."""
        x, image = self.conv_in(sample), sample
        skips = [x]
        for level in self.down_blocks:
            x, image, made = level(x, time, image)
            skips += made
        x, out = self.middle(x, time, None), None
        for level in levels(self.up_blocks):
            left = len(skips) - len(level.resnets)
            skips, own = skips[:left], skips[left:]
            x, out = level(x, time, own, skips[-1].shape[2:] if skips else None, out)
        x = self.conv_out(self.act(self.conv_norm_out(x)))
        return x if out is None else x + out

    def forward(self, sample: Tensor, timestep: Tensor, *, class_labels: Tensor | None = None) -> Tensor:
        """Predict once.

        Args:
            sample: Images or latents (B, in_channels, h, w), scaled as the sampler says; a model of super-resolution
                takes the small image after them, as further channels.
            timestep: Model times (B,), 0 to 999 for most models; noise levels above 0 where time_embedding_type is
                "fourier", by which the prediction is divided.
            class_labels: Classes (B,), int64 below num_class_embeds, or numbers that are embedded as the time is where
                class_embed_type is "timestep".

        Returns:
            The prediction (B, out_channels, h, w), of which a model of learned variance has the variance's numbers
            after it, as further channels (Nichol & Dhariwal 2021, arXiv:2102.09672).

        Raises:
            LdmrtError: The class is missing, not expected by the config, or of another type.
        """
        config, time = self.config, self.time(sample, timestep, class_labels=class_labels)
        x = 2 * sample - 1 if config.center_input_sample else sample
        out = self.beside(x, time) if config.skips else self.predict(x, time)
        return out if self.time_proj is None else out / timestep.to(out.dtype)[:, None, None, None]
