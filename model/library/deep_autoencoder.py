"""Build the deep compression autoencoder (Chen et al. 2024, arXiv:2410.10733), whose latents Sana draws."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from ldmrt.model.config import RawConfig, from_config, positive, within
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.optional import unavailable

from .linear_attention import PixelAttention

PART = "vae"
BLOCKS = ("ResBlock", "EfficientViTBlock")
# What each field may be, or each level of it.
CHOICES: dict[str, tuple[str, ...]] = {
    "encoder_block_types": BLOCKS,
    "decoder_block_types": BLOCKS,
    "decoder_norm_types": ("rms_norm",),
    "decoder_act_fns": ("silu", "relu"),
    "decoder_conv_act_fn": ("silu", "relu"),
    "downsample_block_type": ("pixel_unshuffle", "Conv", "conv"),
    "upsample_block_type": ("pixel_shuffle", "interpolate"),
}


@dataclass(frozen=True)
class DeepConfig:
    """Holds the fields of AutoencoderDC's config; the defaults are diffusers'."""

    in_channels: int = 3
    latent_channels: int = 32
    attention_head_dim: int = 32
    encoder_block_types: str | tuple[str, ...] = "ResBlock"
    decoder_block_types: str | tuple[str, ...] = "ResBlock"
    encoder_block_out_channels: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    decoder_block_out_channels: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    encoder_layers_per_block: tuple[int, ...] = (2, 2, 2, 3, 3, 3)
    decoder_layers_per_block: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    encoder_qkv_multiscales: tuple[tuple[int, ...], ...] = ((), (), (), (5,), (5,), (5,))
    decoder_qkv_multiscales: tuple[tuple[int, ...], ...] = ((), (), (), (5,), (5,), (5,))
    upsample_block_type: str = "pixel_shuffle"
    downsample_block_type: str = "pixel_unshuffle"
    decoder_norm_types: str | tuple[str, ...] = "rms_norm"
    decoder_act_fns: str | tuple[str, ...] = "silu"
    encoder_out_shortcut: bool = True
    decoder_in_shortcut: bool = True
    decoder_conv_act_fn: str = "relu"
    scaling_factor: float = 1.0

    def __post_init__(self) -> None:
        """Refuse sizes that no network can be built of, levels that do not fit together, and unknown blocks."""
        positive(PART, self, "in_channels", "latent_channels", "attention_head_dim")
        within(PART, self, "scaling_factor", 1e-6, 1e6)
        levels = len(self.encoder_block_out_channels)
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if one not in choices:
                    raise LdmrtError(PART, f"unsupported {name} in the config", expected=choices, found=repr(one))
            if isinstance(value, tuple) and len(value) != levels:
                raise _invalid(name, f"{levels} values, one for each level", value)
        for side in ("encoder", "decoder"):
            self._check_side(side, levels)

    def _check_side(self, side: str, levels: int) -> None:
        """Refuse levels of the encoder or of the decoder that do not fit together."""
        names = [f"{side}_{name}" for name in ("block_out_channels", "layers_per_block", "qkv_multiscales")]
        widths, layers, kernels = (getattr(self, name) for name in names)
        for name in names:
            if not levels or len(getattr(self, name)) != levels:
                raise _invalid(name, f"{levels} values, one for each level", getattr(self, name))
        positive(PART, self, names[0])
        if layers[0] < 0 or min(layers[1:], default=1) < 1:
            raise _invalid(names[1], "at least 1, of the first level 0", layers)
        if any(kernel < 1 or kernel % 2 == 0 for level in kernels for kernel in level):
            raise _invalid(names[2], "odd numbers", kernels)
        for fine, coarse in pairwise(widths[layers[0] == 0 :]):
            whole = fine * 4 % coarse == 0 and coarse % 4 == 0 if side == "encoder" else fine * 4 % coarse == 0
            if not whole:
                raise _invalid(names[0], "widths that divide four times the one before them", widths)
        shortcut = self.encoder_out_shortcut if side == "encoder" else self.decoder_in_shortcut
        if shortcut and widths[-1] % self.latent_channels:
            raise _invalid(names[0], f"a last one that latent_channels {self.latent_channels} divides", widths)

    @classmethod
    def read(cls, config: RawConfig) -> "DeepConfig":
        """Read the content of diffusers' config.json; see `from_config`."""
        return from_config(cls, config, {}, PART)

    @property
    def out_channels(self) -> int:
        """Channels of an image."""
        return self.in_channels

    @property
    def force_upcast(self) -> bool:
        """Whether half precision is known to overflow: no config says so."""
        return False

    @property
    def factor(self) -> int:
        """Pixels that one latent stands for, along one side."""
        return 2 ** (len(self.encoder_block_out_channels) - 1)

    @property
    def latent_width(self) -> int:
        """Channels of the latents that a transformer works in."""
        return self.latent_channels


class DeepAutoencoder(nn.Module):
    """Encodes images as latents and decodes latents to images, in diffusers' own networks.

    Latents here are the autoencoder's own: those of the network that denoises are these times `config.scaling_factor`.
    """

    def __init__(self, config: DeepConfig) -> None:
        """Build encoder and decoder of diffusers' AutoencoderDC, with nothing beside the latents.

        Raises:
            LdmrtError: diffusers is missing.
        """
        super().__init__()
        try:
            from diffusers import AutoencoderDC
            from diffusers.models.attention_processor import SanaMultiscaleLinearAttention
        except ImportError as error:
            raise unavailable(error, PART) from None
        self.config = config
        network: Any = AutoencoderDC(**vars(config))
        self.encoder: nn.Module = network.encoder
        self.decoder: nn.Module = network.decoder
        self.quant_conv, self.post_quant_conv = nn.Identity(), nn.Identity()
        attentions: list[Any] = [one for one in self.modules() if isinstance(one, SanaMultiscaleLinearAttention)]
        for attention in attentions:
            attention.processor = PixelAttention()

    @classmethod
    def from_config(cls, config: RawConfig) -> "DeepAutoencoder":
        """Build the network of a diffusers config.json, with random weights."""
        return cls(DeepConfig.read(config))

    def encode(self, image: Tensor) -> Tensor:
        """Compute the latents of images.

        Args:
            image: Images (B, in_channels, H, W) in [-1, 1]; sides are multiples of `config.factor`, f.

        Returns:
            Latents (B, latent_channels, H/f, W/f).
        """
        latents: Tensor = self.encoder(image)
        return latents

    def decode(self, latent: Tensor) -> Tensor:
        """Compute the images of latents.

        Args:
            latent: Latents (B, latent_channels, h, w), not multiplied by the scaling factor.

        Returns:
            Images (B, in_channels, f*h, f*w), in [-1, 1] but for overshoots, which are not clamped.
        """
        images: Tensor = self.decoder(latent)
        return images


def _invalid(name: str, expected: str, found: object) -> LdmrtError:
    return LdmrtError(PART, f"config has an invalid {name}", expected=expected, found=found)
