"""Define the KL autoencoder between images and latents (Rombach et al. 2022, section 3.1; Kingma & Welling 2013).

Its encoder and decoder are also those of the autoencoder with a codebook. State-dict keys and config fields are those
of diffusers' AutoencoderKL.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmrt.model.config import RawConfig, from_config, positive, within
from ldmrt.runtime.errors import LdmrtError

from .attention import SpatialAttention
from .blocks import Downsample, Level, ResnetBlock, Upsample, known_activation

C = TypeVar("C", bound="CodecConfig")
EPS = 1e-6  # of every norm: fixed in diffusers

# Config keys of diffusers that ask for something else than the blocks below, with the values that ask for nothing.
NEUTRAL: RawConfig = {
    "latents_mean": (None, 0.0),
    "latents_std": (None, 1.0),
}


@dataclass(frozen=True)
class CodecConfig:
    """Holds the fields that AutoencoderKL's and VQModel's configs share; the defaults are diffusers'."""

    neutral: ClassVar[RawConfig]

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    act_fn: str = "silu"  # of the resnets; the last one of encoder and decoder is SiLU in diffusers whatever it says
    sample_size: int = 32
    scaling_factor: float = 0.18215
    force_upcast: bool = False
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        """Refuse sizes below 1, blocks and activations that are unsupported, and widths that do not fit the groups."""
        positive("vae", self, "in_channels", "out_channels", "block_out_channels", "layers_per_block")
        positive("vae", self, "latent_channels", "norm_num_groups")
        known_activation("vae", self, "act_fn")
        within("vae", self, "scaling_factor", 1e-6, 1e6)
        if odd := [width for width in self.block_out_channels if width % self.norm_num_groups]:
            expected = f"a multiple of norm_num_groups, {self.norm_num_groups}"
            raise LdmrtError("vae", f"block_out_channels {odd[0]} cannot be split", expected=expected)
        for name, block in (
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ):
            types = getattr(self, name)
            if types != (block,) * len(self.block_out_channels):
                raise LdmrtError(
                    "vae",
                    f"{name} is not supported",
                    expected=f"{len(self.block_out_channels)} x {block}",
                    found=types,
                )

    @classmethod
    def read(cls: type[C], config: RawConfig) -> C:
        """Read the content of diffusers' config.json; see `from_config`."""
        side = config.get("sample_size")  # of no effect on an image: a pair of sides may stand for one
        if side is None:
            config = {**config, "sample_size": cls.sample_size}
        elif isinstance(side, (list, tuple)) and len(side) == 2 and all(type(length) is int for length in side):
            config = {**config, "sample_size": max(side)}
        return from_config(cls, config, cls.neutral, "vae")

    @property
    def factor(self) -> int:
        """Pixels that one latent stands for, along one side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def latent_width(self) -> int:
        """Channels of the latents that a U-Net works in."""
        return self.latent_channels

    @property
    def encoded_channels(self) -> int:
        """Channels of the encoder's output."""
        return self.latent_channels


@dataclass(frozen=True)
class AutoencoderConfig(CodecConfig):
    """Holds the fields of AutoencoderKL's config that matter here; the defaults are diffusers'."""

    neutral: ClassVar[RawConfig] = NEUTRAL

    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    shift_factor: float | None = None  # that is taken from latents before they are scaled

    @property
    def encoded_channels(self) -> int:
        """Channels of the encoder's output: the mean and the log-variance of each latent."""
        return 2 * self.latent_channels


def _stack(widths: list[int], config: CodecConfig) -> list[nn.Module]:
    """Build one resnet between each width and the next."""
    groups, act = config.norm_num_groups, config.act_fn
    return [ResnetBlock(a, b, groups=groups, eps=EPS, act=act) for a, b in pairwise(widths)]


def _middle(width: int, config: CodecConfig) -> Level:
    """Build two resnets with an attention between them, where the config has one."""
    groups = config.norm_num_groups
    resnets = _stack([width] * 3, config)
    return Level(resnets, [SpatialAttention(width, groups=groups, eps=EPS)] if config.mid_block_add_attention else None)


def _run(level: Level, x: Tensor) -> Tensor:
    """Run a level on x (B, C, H, W): resnets with the attentions, if any, between them; then the change of size."""
    for i, resnet in enumerate(level.resnets):
        x = resnet(x)
        if level.attentions is not None and i < len(level.attentions):
            x = level.attentions[i](x)
    for change in (level.downsamplers, level.upsamplers):
        if change is not None:
            x = change[0](x)
    return x


class Encoder(nn.Module):
    """Turns images into the parameters of their latents' distribution, or into latents, before `quant_conv`."""

    def __init__(self, config: CodecConfig) -> None:
        """Build a level for each of `block_out_channels`, all but the last of which halve the size, and a middle."""
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        inner = widths[0]
        for level, width in enumerate(widths):
            smaller = Downsample(width, padding=0) if level < len(widths) - 1 else None
            self.down_blocks.append(Level(_stack([inner] + [width] * config.layers_per_block, config), down=smaller))
            inner = width
        self.mid_block = _middle(inner, config)
        self.conv_norm_out = nn.GroupNorm(groups, inner, EPS)
        self.conv_out = nn.Conv2d(inner, config.encoded_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Encode images x (B, in_channels, H, W) in [-1, 1]; returns (B, encoded_channels, H/f, W/f)."""
        x = self.conv_in(x)
        for level in (*self.down_blocks, self.mid_block):
            x = _run(cast(Level, level), x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Turns latents into images, after `post_quant_conv`."""

    def __init__(self, config: CodecConfig) -> None:
        """Build a middle and a level for each of `block_out_channels`, all but the last of which double the size."""
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = _middle(widths[0], config)
        self.up_blocks = nn.ModuleList()
        inner = widths[0]
        for level, width in enumerate(widths):
            larger = Upsample(width) if level < len(widths) - 1 else None
            self.up_blocks.append(Level(_stack([inner] + [width] * (config.layers_per_block + 1), config), up=larger))
            inner = width
        self.conv_norm_out = nn.GroupNorm(groups, inner, EPS)
        self.conv_out = nn.Conv2d(inner, config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Decode latents x (B, latent_channels, h, w); returns images (B, out_channels, f*h, f*w), about in [-1, 1]."""
        x = self.conv_in(x)
        for level in (self.mid_block, *self.up_blocks):
            x = _run(cast(Level, level), x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Autoencoder(nn.Module):
    """Encodes images as latents and decodes latents to images (Rombach et al. 2022, arXiv:2112.10752, section 3.1).

    Latents here are the autoencoder's own: the U-Net's are these times `config.scaling_factor`.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        """Build encoder and decoder, each with a 1x1 convolution beside the latents where the config says so."""
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        channels = config.latent_channels
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if config.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if config.use_post_quant_conv else nn.Identity()

    @classmethod
    def from_config(cls, config: RawConfig) -> "Autoencoder":
        """Build the network of a diffusers config.json, with random weights."""
        return cls(AutoencoderConfig.read(config))

    def encode(self, image: Tensor) -> Tensor:
        """Compute the parameters of the latents' normal distribution.

        Args:
            image: Images (B, 3, H, W) in [-1, 1]; sides are multiples of `config.factor`, f.

        Returns:
            Mean and log-variance, one after the other along the channels, (B, 2C, H/f, W/f); `moments` splits them.
        """
        return self.quant_conv(self.encoder(image))

    def decode(self, latent: Tensor) -> Tensor:
        """Compute the images of latents.

        Args:
            latent: Latents (B, C, h, w), not multiplied by the scaling factor.

        Returns:
            Images (B, 3, f*h, f*w), in [-1, 1] but for overshoots, which are not clamped.
        """
        return self.decoder(self.post_quant_conv(latent))


def moments(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Split the output of `Autoencoder.encode`, (B, 2C, h, w), into mean and log-variance, (B, C, h, w) each.

    The log-variance is clamped to [-30, 20], as in the code of Rombach et al. 2022.
    """
    mean, log_variance = parameters.chunk(2, dim=1)
    return mean, log_variance.clamp(-30.0, 20.0)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Compute KL(q || N(0, 1)) in nats, the mean over an image's elements (Kingma & Welling 2013, appendix B).

    Args:
        mean: Means of q, (B, C, h, w).
        log_variance: Logarithms of q's variances, (B, C, h, w).

    Returns:
        One number for each image, (B,).
    """
    nats = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
    return nats.flatten(1).mean(dim=1, dtype=torch.float64).float()  # whatever the batch, the same bits
