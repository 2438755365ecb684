"""Build the transformer of Z-Image (Z-Image Team 2025, arXiv:2511.22699; rotary positions: arXiv:2104.09864)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ldmrt.model.config import RawConfig, from_config, positive, within
from ldmrt.runtime.bundle.stage_of_configs import PACKED as PATCH
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.optional import unavailable

from .masked_attention import MASKED_SCORE
from .pixart import Unpack
from .sinusoids import ExactAngles, Sinusoids

PART = "transformer"
MULTIPLE = 32  # of so many tokens are an image and a prompt, filled up with learned tokens
FREQUENCIES = 256  # features of the time


@dataclass(frozen=True)
class ZImageConfig:
    """Holds the fields of ZImageTransformer2DModel's config; the defaults are diffusers'."""

    all_patch_size: tuple[int, ...] = (PATCH,)
    all_f_patch_size: tuple[int, ...] = (1,)
    in_channels: int = 16
    dim: int = 3840
    n_layers: int = 30
    n_refiner_layers: int = 2
    n_heads: int = 30
    n_kv_heads: int = 30
    norm_eps: float = 1e-5
    qk_norm: bool = True
    cap_feat_dim: int = 2560
    siglip_feat_dim: int | None = None
    rope_theta: float = 256.0
    t_scale: float = 1000.0
    axes_dims: tuple[int, ...] = (32, 48, 48)
    axes_lens: tuple[int, ...] = (1024, 512, 512)

    def __post_init__(self) -> None:
        """Refuse sizes that no network can be built of, positions that do not fill a head, and Z-Image-Omni."""
        positive(PART, self, "in_channels", "dim", "n_layers", "n_refiner_layers", "n_heads", "cap_feat_dim")
        within(PART, self, "norm_eps", 0, 1)
        within(PART, self, "t_scale", 1e-6, 1e6)
        within(PART, self, "rope_theta", 1, 1e9)
        for name, sizes in (("all_patch_size", (PATCH,)), ("all_f_patch_size", (1,))):
            if (found := getattr(self, name)) != sizes:
                raise LdmrtError(PART, f"config has an invalid {name}", expected=list(sizes), found=list(found))
        if self.siglip_feat_dim is not None:
            problem, expected = "this is the transformer of Z-Image-Omni", "one of Z-Image or Z-Image-Turbo"
            raise LdmrtError(PART, problem, expected=expected, found=f"siglip_feat_dim {self.siglip_feat_dim}")
        if self.dim % self.n_heads:
            problem = "config has an invalid dim"
            raise LdmrtError(PART, problem, expected=f"a multiple of n_heads {self.n_heads}", found=self.dim)
        axes, head = self.axes_dims, self.dim // self.n_heads
        if len(axes) != 3 or sum(axes) != head or any(axis < 2 or axis % 2 for axis in axes):
            expected = f"three even numbers that add up to the width of a head, {head}"
            raise LdmrtError(PART, "config has an invalid axes_dims", expected=expected, found=list(axes))
        if len(self.axes_lens) != 3 or not 2 <= min(self.axes_lens) <= max(self.axes_lens) <= 4096:
            problem, expected = "config has an invalid axes_lens", "three numbers of positions, 2 to 4096"
            raise LdmrtError(PART, problem, expected=expected, found=list(self.axes_lens))

    @classmethod
    def read(cls, config: RawConfig) -> "ZImageConfig":
        """Read the content of the transformer's config.json; see `from_config`."""
        return from_config(cls, config, {}, PART)


if TYPE_CHECKING:

    class ZImage(nn.Module):
        """Stands for diffusers' class, which has no types; its config has these fields and is a dict too."""

        config: ZImageConfig


class Progress(nn.Module):
    """Turns a timestep into how far the image is drawn: 0 for noise, t_scale for an image."""

    def __init__(self, scale: float) -> None:
        """Take the number that stands for an image."""
        super().__init__()
        self.scale = scale

    def forward(self, timesteps: Tensor) -> Tensor:
        """Return timesteps, (B,) in float32, counted so."""
        return (1000 - timesteps) / 1000 * self.scale


class Time(nn.Module):
    """Embeds the time as diffusers' TimestepEmbedder does, from frequencies that are constants."""

    def __init__(self, mlp: nn.Module) -> None:
        """Take its layers."""
        super().__init__()
        self.time_proj, self.mlp = Sinusoids(FREQUENCIES), mlp

    def forward(self, times: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the embedding (B, width) of times (B,)."""
        embedding: Tensor = self.mlp(self.time_proj(times).to(dtype))
        return embedding


class Patches(nn.Module):
    """Lists the latents of each patch: by rows, by columns, then by channels."""

    def forward(self, latents: Tensor) -> Tensor:
        """Return latents (B, C, h, w) as (B, h/2 w/2, 4 C)."""
        batch, channels, height, width = latents.shape
        rows, columns = height // PATCH, width // PATCH
        patches = latents.reshape(batch, channels, rows, PATCH, columns, PATCH)
        return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, PATCH**2 * channels)


class ImagePadding(nn.Module):
    """Puts learned tokens behind those of an image, which are seen up to a multiple of 32: see `ImageMask`.

    One less than 32 are there at every size, as a graph for all sizes has no other number of them.
    """

    def forward(self, tokens: Tensor, pad: Tensor) -> Tensor:
        """Return tokens (B, n + 31, width) of (B, n, width) and of (1, width)."""
        return torch.cat([tokens, pad[None].expand(tokens.shape[0], MULTIPLE - 1, -1)], dim=1)


class ImageMask(nn.Module):
    """Computes what is added to the scores of attention for the tokens of an image, and those behind them."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return 0, or a number whose exponential is 0, (1, n + 31), for tokens (B, n + 31, width)."""
        count = tokens.shape[1]
        seen = torch.arange(count, device=tokens.device) < count // MULTIPLE * MULTIPLE
        return torch.where(seen, 0.0, MASKED_SCORE).to(tokens.dtype)[None]


class PromptLength(nn.Module):
    """Counts the tokens of a prompt, up to a multiple of 32."""

    def forward(self, mask: Tensor) -> Tensor:
        """Return the numbers (B,) in float32 of a mask (B, tokens), 1 for each token of a prompt."""
        return torch.ceil(mask.float().sum(1) / MULTIPLE) * MULTIPLE


class PromptPadding(nn.Module):
    """Puts a learned token in the place of what fills up a prompt, up to a multiple of 32 tokens in all."""

    def forward(self, tokens: Tensor, mask: Tensor, pad: Tensor) -> Tensor:
        """Return tokens (B, m, width), for the next multiple m of 32.

        Args:
            tokens: (B, n, width), of which a prompt's are the first ones.
            mask: (B, n), 1 for each token of a prompt.
            pad: (1, width).
        """
        batch, count = mask.shape
        padded = torch.where((mask > 0.5)[:, :, None], tokens, pad[None])
        missing = -count % MULTIPLE
        return torch.cat([padded, pad[None].expand(batch, missing, -1)], dim=1) if missing else padded


class PromptMask(nn.Module):
    """Computes what is added to the scores of attention for the tokens of a prompt, and those behind them."""

    def forward(self, tokens: Tensor, length: Tensor) -> Tensor:
        """Return 0, or a number whose exponential is 0, (B, m), for tokens (B, m, width) of which so many are seen."""
        seen = torch.arange(tokens.shape[1], dtype=torch.float32, device=tokens.device) < length[:, None]
        return torch.where(seen, 0.0, MASKED_SCORE).to(tokens.dtype)


class ImagePositions(nn.Module):
    """Counts the tokens of an image by rows and columns, behind those of a prompt; what fills them up is at 0."""

    def forward(self, latents: Tensor, length: Tensor) -> Tensor:
        """Return positions (B, h/2 w/2 + 31, 3) in float32, for latents (B, C, h, w) and a prompt of a length (B,)."""
        height, width = (side // PATCH for side in latents.shape[2:])
        rows, columns = (torch.arange(side, device=latents.device, dtype=torch.float32) for side in (height, width))
        grid = torch.stack([rows[:, None].expand(height, width), columns[None].expand(height, width)], dim=-1)
        grid = grid.reshape(1, height * width, 2).expand(length.shape[0], -1, -1)
        behind = (length + 1)[:, None, None].expand(-1, grid.shape[1], 1)
        image = torch.cat([behind, grid], dim=2)
        return torch.cat([image, image.new_zeros(image.shape[0], MULTIPLE - 1, 3)], dim=1)


class PromptPositions(nn.Module):
    """Counts the tokens of a prompt from 1."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return positions (B, m, 3) in float32, for tokens (B, m, width)."""
        batch, count = tokens.shape[:2]
        places = torch.arange(1, count + 1, device=tokens.device, dtype=torch.float32)
        return torch.stack([places, places * 0, places * 0], dim=-1)[None].expand(batch, -1, -1)


class RotaryPositions(nn.Module):
    """Computes the rotary positions of tokens as diffusers' RopeEmbedder does: exact angles, rounded to float32."""

    def __init__(self, axes: tuple[int, ...], theta: float) -> None:
        """Compute the frequencies of so many features of each axis."""
        super().__init__()
        self.axes = [ExactAngles(theta ** (-np.arange(0, axis, 2, dtype=np.float64) / axis)) for axis in axes]

    def forward(self, positions: Tensor) -> Tensor:
        """Return cosines, then sines, (2, B, tokens, head / 2) in float32, of positions (B, tokens, 3) below 4096."""
        angles = []
        for axis, parts in enumerate(self.axes):
            leading, rest = (
                torch.tensor(part, dtype=torch.float32, device=positions.device) for part in (parts.leading, parts.rest)
            )
            position = positions[:, :, axis, None]
            angles.append(position * leading + position * rest)
        every = torch.cat(angles, dim=2)
        return torch.stack([torch.cos(every), torch.sin(every)])


class RotaryAttention:
    """Attends to tokens as diffusers' ZSingleStreamAttnProcessor does, without complex numbers."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: None = None, *, attention_mask: Tensor,
        freqs_cis: Tensor,
    ) -> Tensor:  # fmt: skip
        """Return what tokens (B, n, width) read of one another, by a mask (B, n, n) and cosines and sines."""
        q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        q, k, v = (one.unflatten(2, (attn.heads, -1)) for one in (q, k, v))
        if attn.norm_q is not None:
            q, k = attn.norm_q(q), attn.norm_k(k)
        q, k, v = (one.transpose(1, 2) for one in (turned(q, freqs_cis), turned(k, freqs_cis), v))
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask[:, None])
        projected: Tensor = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return projected


def turned(states: Tensor, rotary: Tensor) -> Tensor:
    """Turn each pair of features (B, n, heads, head) by its angle, in float32; the result has the states' dtype."""
    cosines, sines = rotary[:, :, :, None]
    first, second = states.float().unflatten(3, (-1, 2)).unbind(4)
    both = torch.stack([first * cosines - second * sines, first * sines + second * cosines], dim=4)
    return both.flatten(3).to(states.dtype)


class Velocity(nn.Module):
    """Turns the direction to the image, which the network predicts, into that of samplers, to the noise."""

    def forward(self, latents: Tensor) -> Tensor:
        """Return the other direction; the same shape."""
        return -latents


def z_image(config: RawConfig) -> "ZImage":
    """Build the transformer in diffusers' class, with random weights, or without on the meta device.

    Args:
        config: The content of its config.json.

    Raises:
        LdmrtError: The config is invalid, or diffusers is missing.
    """
    read = ZImageConfig.read(config)
    try:
        from diffusers import ZImageTransformer2DModel
    except ImportError as error:
        raise unavailable(error, PART) from None
    network: Any = ZImageTransformer2DModel(**vars(read))
    network.t_embedder = Time(network.t_embedder.mlp)
    network.rope_embedder = RotaryPositions(read.axes_dims, read.rope_theta)
    for block in (*network.noise_refiner, *network.context_refiner, *network.layers):
        block.attention.set_processor(RotaryAttention())
    network.progress, network.patches = Progress(read.t_scale), Patches()
    network.image_padding, network.image_mask = ImagePadding(), ImageMask()
    network.prompt_length, network.prompt_padding, network.prompt_mask = PromptLength(), PromptPadding(), PromptMask()
    network.image_positions, network.prompt_positions = ImagePositions(), PromptPositions()
    network.unpack, network.velocity = Unpack(PATCH), Velocity()
    return cast("ZImage", network.eval())
