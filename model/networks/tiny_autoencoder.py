"""Define the tiny autoencoder, which is distilled from a large one and stands in for it (Bohan 2023, TAESD).

It has no norms, no attention and no distribution: its encoder gives latents as a U-Net takes them. State-dict keys and
config fields are those of diffusers' AutoencoderTiny; the code is https://github.com/madebyollin/taesd.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ldmrt.model.config import RawConfig, from_config, positive, within
from ldmrt.runtime.errors import LdmrtError

from .blocks import ACTIVATIONS, double, known_activation

# Config keys of diffusers that ask for something else than the blocks below, with the values that ask for nothing.
NEUTRAL: RawConfig = {
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,  # as its encoder halves
}
LARGEST = 3.0  # what latents are squashed to, in the decoder


@dataclass(frozen=True)
class TinyConfig:
    """Holds the fields of AutoencoderTiny's config that matter here; the defaults are diffusers'."""

    neutral: ClassVar[RawConfig] = NEUTRAL

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64,) * 4
    decoder_block_out_channels: tuple[int, ...] = (64,) * 4
    block_out_channels: tuple[int, ...] = (64,) * 4  # the decoder's, under the name that programs look for
    act_fn: str = "relu"  # within the blocks; each ends with ReLU in diffusers whatever it says
    latent_channels: int = 4
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_magnitude: float = 3  # this and the next: of latents that are stored as bytes, which no pipeline does
    latent_shift: float = 0.5
    scaling_factor: float = 1.0
    force_upcast: bool = False
    shift_factor: float | None = None  # that is taken from latents before they are scaled; None is 0

    def __post_init__(self) -> None:
        """Refuse sizes below 1, levels of unequal number or width, and activations that are unsupported."""
        positive("vae", self, "in_channels", "out_channels", "latent_channels")
        positive("vae", self, "encoder_block_out_channels", "decoder_block_out_channels")
        known_activation("vae", self, "act_fn")
        within("vae", self, "scaling_factor", 1e-6, 1e6)
        levels = len(self.decoder_block_out_channels)
        for name in ("encoder_block_out_channels", "num_encoder_blocks", "num_decoder_blocks"):
            if len(getattr(self, name)) != levels:
                expected = f"{levels} numbers, as many as decoder_block_out_channels has"
                raise LdmrtError("vae", f"config has an invalid {name}", expected=expected, found=getattr(self, name))
        for name in ("encoder_block_out_channels", "decoder_block_out_channels"):
            if len(set(getattr(self, name))) > 1:  # a level's first convolution takes its own width, in diffusers too
                expected = "one width for all levels"
                raise LdmrtError("vae", f"config has an invalid {name}", expected=expected, found=getattr(self, name))
        for name in ("num_encoder_blocks", "num_decoder_blocks"):
            if min(getattr(self, name)) < 0:
                raise LdmrtError(
                    "vae", f"config has an invalid {name}", expected="at least 0", found=getattr(self, name)
                )

    @classmethod
    def read(cls, config: RawConfig) -> "TinyConfig":
        """Read the content of diffusers' config.json; see `from_config`."""
        widths = config.get("decoder_block_out_channels", cls.decoder_block_out_channels)
        shift = None if config.get("shift_factor") == 0 else config.get("shift_factor")
        known = {**config, "block_out_channels": widths, "shift_factor": shift}
        return from_config(cls, known, cls.neutral, "vae")

    @property
    def factor(self) -> int:
        """Pixels that one latent stands for, along one side."""
        return 2 ** (len(self.decoder_block_out_channels) - 1)

    @property
    def latent_width(self) -> int:
        """Channels of the latents that a U-Net works in."""
        return self.latent_channels


class Activation(nn.Module):
    """Applies an activation, as a layer of a `Sequential`."""

    def __init__(self, name: str) -> None:
        """Take the activation of this name, a key of `ACTIVATIONS` in any case."""
        super().__init__()
        self.act = ACTIVATIONS[name.lower()]

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to features x of any shape; returns the same shape."""
        return self.act(x)


class Double(nn.Module):
    """Doubles height and width by nearest neighbours, as a layer of a `Sequential`."""

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge features x (B, C, H, W) to (B, C, 2H, 2W)."""
        return double(x)


class TinyBlock(nn.Module):
    """Adds three convolutions with activations between them to its input, and ends with ReLU."""

    def __init__(self, width: int, act: str) -> None:
        """Build a block that keeps the number of channels, `width`; `act` is a name of `ACTIVATIONS`."""
        super().__init__()
        convolutions = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        first, second, third = convolutions
        self.conv = nn.Sequential(first, Activation(act), second, Activation(act), third)

    def forward(self, x: Tensor) -> Tensor:
        """Transform features x (B, width, H, W); returns the same shape."""
        return torch.relu(self.conv(x) + x)


class TinyEncoder(nn.Module):
    """Turns images into latents."""

    def __init__(self, config: TinyConfig) -> None:
        """Build the levels, all but the first of which begin with a convolution that halves the size."""
        super().__init__()
        width = config.encoder_block_out_channels[0]
        layers: list[nn.Module] = [nn.Conv2d(config.in_channels, width, 3, padding=1)]
        for level, blocks in enumerate(config.num_encoder_blocks):
            if level:
                layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False))
            layers += [TinyBlock(width, config.act_fn) for _ in range(blocks)]
        layers.append(nn.Conv2d(width, config.latent_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Encode images x (B, in_channels, H, W) in [-1, 1]; returns (B, latent_channels, H/f, W/f)."""
        return self.layers((x + 1) / 2)  # in [0, 1], as it was trained


class TinyDecoder(nn.Module):
    """Turns latents into images."""

    def __init__(self, config: TinyConfig) -> None:
        """Build the levels, all but the last of which end with doubling the size and a convolution."""
        super().__init__()
        width = config.decoder_block_out_channels[0]
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, width, 3, padding=1), Activation(config.act_fn)]
        for level, blocks in enumerate(config.num_decoder_blocks):
            if level:
                layers += [Double(), nn.Conv2d(width, width, 3, padding=1, bias=False)]
            layers += [TinyBlock(width, config.act_fn) for _ in range(blocks)]
        layers.append(nn.Conv2d(width, config.out_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Decode latents x (B, latent_channels, h, w); returns images (B, out_channels, f*h, f*w), about in [-1, 1]."""
        x = torch.tanh(x / LARGEST) * LARGEST
        return self.layers(x) * 2 - 1  # it was trained on [0, 1]


class TinyAutoencoder(nn.Module):
    """Encodes images as latents and decodes latents to images, both at a fraction of a large autoencoder's cost.

    Latents here are the autoencoder's own: those of the network that denoises are these, less `config.shift_factor`,
    times `config.scaling_factor`; they are the same unless its config says otherwise.
    """

    def __init__(self, config: TinyConfig) -> None:
        """Build encoder and decoder, with nothing beside the latents."""
        super().__init__()
        self.config = config
        self.encoder = TinyEncoder(config)
        self.decoder = TinyDecoder(config)
        self.quant_conv, self.post_quant_conv = nn.Identity(), nn.Identity()

    @classmethod
    def from_config(cls, config: RawConfig) -> "TinyAutoencoder":
        """Build the network of a diffusers config.json, with random weights."""
        return cls(TinyConfig.read(config))

    def encode(self, image: Tensor) -> Tensor:
        """Compute the latents of images.

        Args:
            image: Images (B, in_channels, H, W) in [-1, 1]; sides are multiples of `config.factor`, f.

        Returns:
            Latents (B, latent_channels, H/f, W/f).
        """
        return self.encoder(image)

    def decode(self, latent: Tensor) -> Tensor:
        """Compute the images of latents.

        Args:
            latent: Latents (B, latent_channels, h, w), not multiplied by the scaling factor.

        Returns:
            Images (B, out_channels, f*h, f*w), in [-1, 1] but for overshoots, which are not clamped.
        """
        return self.decoder(latent)
