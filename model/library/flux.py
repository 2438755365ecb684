"""Build the transformer of FLUX.1 (Black Forest Labs 2024; rotary positions: Su et al. 2021, arXiv:2104.09864)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ldmrt.model.config import RawConfig, from_config, positive
from ldmrt.runtime.bundle.stage_of_configs import PACKED as PATCH
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.optional import unavailable

from .sinusoids import ExactAngles, Sinusoids

PART = "transformer"
THETA = 10000  # of the rotary positions


@dataclass(frozen=True)
class FluxConfig:
    """Holds the fields of FluxTransformer2DModel's config; the defaults are diffusers'.

    Channels are those of a token: four times those of the latents.
    """

    patch_size: int = 1
    in_channels: int = 64
    out_channels: int | None = None
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)

    def __post_init__(self) -> None:
        """Refuse sizes that no network can be built of, and positions that do not fill a head."""
        positive(PART, self, "in_channels", "out_channels", "num_layers", "num_single_layers", "attention_head_dim")
        positive(PART, self, "num_attention_heads", "joint_attention_dim", "pooled_projection_dim")
        if self.patch_size != 1:
            raise LdmrtError(PART, "config has an invalid patch_size", expected="1", found=self.patch_size)
        axes, head = self.axes_dims_rope, self.attention_head_dim
        if len(axes) != 3 or sum(axes) != head or any(axis < 2 or axis % 2 for axis in axes):
            expected = f"three even numbers that add up to attention_head_dim {head}"
            raise LdmrtError(PART, "config has an invalid axes_dims_rope", expected=expected, found=list(axes))

    @classmethod
    def read(cls, config: RawConfig) -> "FluxConfig":
        """Read the content of the transformer's config.json; see `from_config`."""
        return from_config(cls, config, {}, PART)


if TYPE_CHECKING:

    class Flux(nn.Module):
        """Stands for diffusers' class, which has no types; its config has these fields and is a dict too."""

        config: FluxConfig


class RotaryPositions(nn.Module):
    """Computes the rotary positions of tokens as diffusers' FluxPosEmbed does in float64, with float32 alone."""

    def __init__(self, axes: tuple[int, ...]) -> None:
        """Compute the frequencies of so many features of each axis."""
        super().__init__()
        self.angles = [ExactAngles(THETA ** (-np.arange(0, axis, 2, dtype=np.float64) / axis)) for axis in axes]

    def forward(self, ids: Tensor) -> Tensor:
        """Return cosines, then sines, (2, tokens, head) in float32, of positions (tokens, axes) below 4096."""
        parts = [angles(ids[:, axis, None].float()) for axis, angles in enumerate(self.angles)]
        both = torch.stack([torch.cat(side, dim=1) for side in zip(*parts, strict=True)])
        return both[..., None].expand(-1, -1, -1, 2).flatten(2)


class Thousandfold(nn.Module):
    """Multiplies guidance by 1000, as its features are those of timesteps."""

    def forward(self, guidance: Tensor) -> Tensor:
        """Return it, (B,) as it is given."""
        return 1000 * guidance


class Positions(nn.Module):
    """Counts the tokens of an image by rows and columns; a text's are all at 0."""

    def forward(self, context: Tensor, latents: Tensor, images: int = 1) -> Tensor:
        """Return the positions of context (B, tokens, width), then of latents (B, C, h, w): (tokens, 3) in float32.

        Of several images, which differ in the first number, those of one follow those of the other.
        """
        height, width = (side // PATCH for side in latents.shape[2:])
        rows, columns = (torch.arange(side, device=latents.device, dtype=torch.float32) for side in (height, width))
        image = torch.stack([
            torch.zeros_like(rows)[:, None].expand(height, width),
            rows[:, None].expand(height, width),
            columns[None].expand(height, width),
        ], dim=-1).reshape(height * width, 3)  # fmt: skip
        others = [image + image.new_tensor([number, 0, 0]) for number in range(1, images)]
        return torch.cat([image.new_zeros(context.shape[1], 3), image, *others])


class Pack(nn.Module):
    """Puts the latents of each patch into one token."""

    def forward(self, latents: Tensor) -> Tensor:
        """Return latents (B, C, h, w) as (B, h/2 w/2, 4 C)."""
        batch, channels, height, width = latents.shape
        rows, columns = height // PATCH, width // PATCH
        patches = latents.reshape(batch, channels, rows, PATCH, columns, PATCH)
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * PATCH**2)


class Unpack(nn.Module):
    """Puts tokens back into latents."""

    def forward(self, tokens: Tensor, latents: Tensor) -> Tensor:
        """Return tokens (B, h/2 w/2, 4 C) as (B, C, h, w), of the height and width of latents (B, ..., h, w)."""
        batch, channels = tokens.shape[0], tokens.shape[2] // PATCH**2
        height, width = latents.shape[2:]
        patches = tokens.reshape(batch, height // PATCH, width // PATCH, channels, PATCH, PATCH)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


def flux(config: RawConfig) -> "Flux":
    """Build the transformer in diffusers' class, with random weights, or without on the meta device.

    Args:
        config: The content of its config.json.

    Raises:
        LdmrtError: The config is invalid, or diffusers is missing.
    """
    read = FluxConfig.read(config)
    try:
        from diffusers import FluxTransformer2DModel
    except ImportError as error:
        raise unavailable(error, PART) from None
    network: Any = FluxTransformer2DModel(**vars(read))
    embedding = network.time_text_embed
    embedding.time_proj = Sinusoids(embedding.time_proj.num_channels)
    network.pos_embed = RotaryPositions(read.axes_dims_rope)
    network.thousandfold, network.positions = Thousandfold(), Positions()
    network.pack, network.unpack = Pack(), Unpack()
    return cast("Flux", network.eval())
