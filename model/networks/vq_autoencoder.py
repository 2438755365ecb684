"""Define the autoencoder whose latents are vectors of a codebook (van den Oord et al. 2017, arXiv:1711.00937).

Latent diffusion calls it VQ-reg: the codes are looked up in the decoder (Rombach et al. 2022, section 3.1), so a U-Net
works in latents that need not be codes. State-dict keys and config fields are those of diffusers' VQModel.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ldmrt.model.config import RawConfig, positive

from .attention import HALVES
from .autoencoder import CodecConfig, Decoder, Encoder

# Config keys of diffusers that ask for something else than the blocks below, with the values that ask for nothing.
NEUTRAL: RawConfig = {"lookup_from_codebook": False, "norm_type": "group"}


@dataclass(frozen=True)
class VQConfig(CodecConfig):
    """Holds the fields of VQModel's config that matter here; the defaults are diffusers'."""

    neutral: ClassVar[RawConfig] = NEUTRAL

    latent_channels: int = 3  # of encoder and decoder; a U-Net works in the codes' width
    num_vq_embeddings: int = 256
    vq_embed_dim: int | None = None  # the codes' width; None for latent_channels

    def __post_init__(self) -> None:
        """Refuse what `CodecConfig` refuses, and a codebook without codes or of no width."""
        super().__post_init__()
        positive("vae", self, "num_vq_embeddings", "vq_embed_dim")

    @property
    def latent_width(self) -> int:
        """Width of a code: the channels of the latents that a U-Net works in."""
        return self.vq_embed_dim or self.latent_channels


class Quantizer(nn.Module):
    """Puts the nearest vector of a codebook in the place of each latent (van den Oord et al. 2017, equation 1)."""

    reads_inner_weights = True  # of `embedding`, beside calling it

    def __init__(self, codes: int, width: int) -> None:
        """Build a codebook of so many vectors of this width."""
        super().__init__()
        self.embedding = nn.Embedding(codes, width)

    def codes(self, latents: Tensor) -> Tensor:
        """Find the nearest vector of each latent.

        The vectors e are compared by |e|^2 - 2 x.e, which is their squared distance to x less |x|^2. In a network of
        half precision they are compared in float32: the roundings of half are as large as distances between codes.

        Args:
            latents: Latents x, (B, width, h, w).

        Returns:
            The indices of the vectors, (B, h * w), int64.
        """
        x, table = latents.flatten(2).transpose(1, 2), self.embedding.weight  # (B, hw, width), (codes, width)
        if x.dtype in HALVES:
            x, table = x.float(), table.float()
        distances = table.square().sum(1) - 2 * (x @ table.T)
        return distances.argmin(dim=-1)

    def forward(self, latents: Tensor) -> Tensor:
        """Replace latents (B, width, h, w) by their nearest vectors; returns (B, width, h, w)."""
        return self.embedding(self.codes(latents)).transpose(1, 2).unflatten(2, latents.shape[2:])


class VQAutoencoder(nn.Module):
    """Encodes images as latents, and decodes what a codebook holds nearest to latents.

    Latents here are the autoencoder's own: the U-Net's are these times `config.scaling_factor`.
    """

    def __init__(self, config: VQConfig) -> None:
        """Build encoder, codebook and decoder, with 1x1 convolutions between them."""
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config.num_vq_embeddings, config.latent_width)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.latent_width, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_width, config.latent_channels, 1)

    @classmethod
    def from_config(cls, config: RawConfig) -> "VQAutoencoder":
        """Build the network of a diffusers config.json, with random weights."""
        return cls(VQConfig.read(config))

    def encode(self, image: Tensor) -> Tensor:
        """Compute the latents of images, before the codebook.

        Args:
            image: Images (B, in_channels, H, W) in [-1, 1]; sides are multiples of `config.factor`, f.

        Returns:
            Latents (B, latent_width, H/f, W/f).
        """
        return self.quant_conv(self.encoder(image))

    def decode(self, latent: Tensor) -> Tensor:
        """Compute the images of the codes nearest to latents.

        Args:
            latent: Latents (B, latent_width, h, w), not multiplied by the scaling factor.

        Returns:
            Images (B, out_channels, f*h, f*w), in [-1, 1] but for overshoots, which are not clamped.
        """
        return self.decoder(self.post_quant_conv(self.quantize(latent)))
