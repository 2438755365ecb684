"""Build the transformer of PixArt-Alpha and PixArt-Sigma (Chen et al. 2023, arXiv:2310.00426, and arXiv:2403.04692)."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ldmrt.model.config import RawConfig, from_config, positive, within
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.optional import unavailable

from .masked_attention import Mask, MaskedAttention
from .sinusoids import LEADING_BITS, ExactAngles, Sinusoids

PART = "transformer"
THETA = 10000  # of the positions
TRAINED = 64  # latents along a side of the images whose positions count as they are, where no scale is stated
CONDITIONED = 128  # latents along a side of the images of the model that is told their size, where nothing is stated
# Keys of the config with the one value that PixArt's models have; the last ones are of diffusers' class before it.
NEUTRAL: RawConfig = {
    "activation_fn": "gelu-approximate", "attention_type": "default", "dropout": 0, "norm_elementwise_affine": False,
    "norm_type": "ada_norm_single", "upcast_attention": False,
    "double_self_attention": False, "only_cross_attention": False, "use_linear_projection": False,
}  # fmt: skip


@dataclass(frozen=True)
class PixArtConfig:
    """Holds the fields of PixArtTransformer2DModel's config; the defaults are diffusers'."""

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int | None = 8
    num_layers: int = 28
    norm_num_groups: int = 32
    cross_attention_dim: int = 1152
    attention_bias: bool = True
    sample_size: int = 128
    patch_size: int = 2
    num_embeds_ada_norm: int = 1000
    norm_eps: float = 1e-6
    interpolation_scale: float | None = None
    use_additional_conditions: bool | None = None
    caption_channels: int | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that no network can be built of, and widths that do not fit together."""
        positive(PART, self, "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "num_layers")
        positive(PART, self, "cross_attention_dim", "sample_size", "patch_size", "caption_channels")
        within(PART, self, "norm_eps", 0, 1)
        if self.interpolation_scale is not None:
            within(PART, self, "interpolation_scale", 1e-3, 1e3)
        width, parts = self.width, 12 if self.conditioned else 4
        if width % parts:
            problem, expected = "config has an invalid attention_head_dim", f"a width of all heads that {parts} divides"
            raise LdmrtError(PART, problem, expected=expected, found=width)
        if self.caption_channels is not None and self.cross_attention_dim != width:
            problem, found = "config has an invalid cross_attention_dim", self.cross_attention_dim
            raise LdmrtError(PART, problem, expected=f"{width}, of all heads", found=found)
        if self.sample_size < self.patch_size:
            problem, found = "config has an invalid sample_size", self.sample_size
            raise LdmrtError(PART, problem, expected=f"at least {self.patch_size}, of a patch", found=found)

    @property
    def width(self) -> int:
        """Return the width of a token, of all heads."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def conditioned(self) -> bool:
        """Tell whether the network is told the size of its image."""
        stated = self.use_additional_conditions
        return self.sample_size == CONDITIONED if stated is None else stated

    @property
    def scale(self) -> float:
        """Return what the positions of an image are divided by."""
        stated = self.interpolation_scale
        return max(self.sample_size // TRAINED, 1) if stated is None else stated

    @classmethod
    def read(cls, config: RawConfig) -> "PixArtConfig":
        """Read the content of the transformer's config.json; see `from_config`."""
        return from_config(cls, config, NEUTRAL, PART)


if TYPE_CHECKING:

    class PixArt(nn.Module):
        """Stands for diffusers' class, which has no types; its config has these fields and is a dict too."""

        config: PixArtConfig


class GridPositions(nn.Module):
    """Computes the positions of patches as diffusers' get_2d_sincos_pos_embed does in float64, with float32 alone.

    Those of any image run from 0 to the same number along each side, for a larger one in smaller steps.
    """

    def __init__(self, width: int, patch: int, base: int, scale: float) -> None:
        """Compute frequencies.

        Args:
            width: Features of a token.
            patch: Latents along a side of a patch.
            base: Patches along a side of the images that the model was trained on.
            scale: What positions are divided by.
        """
        super().__init__()
        count = width // 4
        self.angles = ExactAngles(1 / THETA ** (np.arange(count, dtype=np.float64) / count))
        self.patch, self.base, self.scale = patch, base, scale
        self.bits = 2.0 ** (LEADING_BITS - math.ceil(math.log2(max(base / scale, 1))))

    def forward(self, latents: Tensor) -> Tensor:
        """Return features (1, tokens, width) in float32 for latents (B, C, h, w), of the column, then of the row."""
        rows, columns = (self._of(side // self.patch, latents.device) for side in latents.shape[2:])
        height, width = rows.shape[0], columns.shape[0]
        both = [columns[None].expand(height, -1, -1), rows[:, None].expand(-1, width, -1)]
        return torch.cat(both, dim=2).flatten(0, 1)[None]

    def _of(self, count: int, device: torch.device) -> Tensor:
        """Return the features of so many places along a side, sines before cosines: (count, width / 2)."""
        places = torch.arange(count, device=device, dtype=torch.float32)[:, None]
        position = places / ((places[-1:] + 1) / self.base) / self.scale
        leading = torch.floor(position * self.bits) / self.bits
        cosines, sines = self.angles(leading, position - leading)
        return torch.cat([sines, cosines], dim=1)


class Patches(nn.Module):
    """Makes a token of the latents of each patch, and adds its position."""

    def __init__(self, proj: nn.Module, positions: GridPositions) -> None:
        """Join the projection of diffusers' PatchEmbed with positions for every size."""
        super().__init__()
        self.proj, self.positions = proj, positions

    def forward(self, latents: Tensor) -> Tensor:
        """Return latents (B, C, h, w) as (B, tokens, width)."""
        tokens = self.proj(latents).flatten(2).transpose(1, 2)
        return (tokens + self.positions(latents)).to(tokens.dtype)


class Sizes(nn.Module):
    """Computes the size of an image from that of its latents, as diffusers' PixArtAlphaPipeline does."""

    def forward(self, latents: Tensor, factor: int) -> dict[str, Tensor]:
        """Return the resolution (B, 2) in pixels and the ratio of height to width (B, 1), in float32."""
        height, width = (
            torch.arange(side, device=latents.device, dtype=torch.float32)[-1:] + 1 for side in latents.shape[2:]
        )
        batch = latents.shape[0]
        resolution = torch.cat([height, width])[None] * factor
        return {"resolution": resolution.expand(batch, -1), "aspect_ratio": (height / width)[None].expand(batch, -1)}


class Modulate(nn.Module):
    """Scales and shifts tokens by the time."""

    def forward(self, tokens: Tensor, time: Tensor, table: Tensor) -> Tensor:
        """Return tokens (B, tokens, width); a table (2, width) of shift and scale is added to time (B, width)."""
        shift, scale = (table[None] + time[:, None]).chunk(2, dim=1)
        return tokens * (1 + scale) + shift


class Unpack(nn.Module):
    """Puts tokens back into latents."""

    def __init__(self, patch: int) -> None:
        """Take so many latents along a side of a patch."""
        super().__init__()
        self.patch = patch

    def forward(self, tokens: Tensor, latents: Tensor) -> Tensor:
        """Return tokens (B, h w, patch patch C) as (B, C, H, W), of the height and width of latents (B, ..., H, W)."""
        batch, channels = tokens.shape[0], tokens.shape[2] // self.patch**2
        height, width = latents.shape[2:]
        shape = batch, height // self.patch, width // self.patch, self.patch, self.patch, channels
        return tokens.reshape(shape).permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)


class Prediction(nn.Module):
    """Takes the prediction of the noise from what the network gives, without that of a variance behind it."""

    def __init__(self, channels: int) -> None:
        """Take so many channels."""
        super().__init__()
        self.channels = channels

    def forward(self, latents: Tensor) -> Tensor:
        """Return the first channels of (B, C, h, w)."""
        return latents[:, : self.channels]


def pixart(config: RawConfig) -> "PixArt":
    """Build the transformer in diffusers' class, with random weights, or without on the meta device.

    Args:
        config: The content of its config.json, also of Transformer2DModel, as the first models are published.

    Raises:
        LdmrtError: The config is invalid, or diffusers is missing.
    """
    read = PixArtConfig.read(config)
    try:
        from diffusers import PixArtTransformer2DModel
    except ImportError as error:
        raise unavailable(error, PART) from None
    network: Any = PixArtTransformer2DModel(**vars(read))
    positions = GridPositions(read.width, read.patch_size, read.sample_size // read.patch_size, read.scale)
    network.pos_embed = Patches(network.pos_embed.proj, positions)
    embedding = network.adaln_single.emb
    embedding.time_proj = Sinusoids(embedding.time_proj.num_channels)
    if read.conditioned:
        embedding.additional_condition_proj = Sinusoids(embedding.additional_condition_proj.num_channels)
    for block in network.transformer_blocks:
        block.attn2.set_processor(MaskedAttention())
    network.sizes, network.mask, network.modulate = Sizes(), Mask(), Modulate()
    network.unpack, network.prediction = Unpack(read.patch_size), Prediction(read.in_channels)
    return cast("PixArt", network.eval())
