"""Attention, feed-forward and the transformer of the U-Net. Attribute names are diffusers' state-dict keys."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALVES = (torch.float16, torch.bfloat16)


class Attention(nn.Module):
    """Multi-head attention by torch's scaled-dot-product: (B, L, C), (B, M, context) -> (B, L, C).

    `upcast` computes the scores in float32 in a network of half precision, where those of some models overflow.
    """

    def __init__(
        self, channels: int, heads: int, *, context: int | None = None, bias: bool = False, upcast: bool = False
    ) -> None:
        super().__init__()
        context = context or channels
        self.heads = heads
        self.upcast = upcast
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(context, channels, bias=bias)
        self.to_v = nn.Linear(context, channels, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, L, C/heads)
            for projected in (self.to_q(x), self.to_k(source), self.to_v(source))
        )
        if self.upcast and q.dtype in HALVES:
            attended = F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
        return self.to_out[0](attended.transpose(1, 2).flatten(2))


class SpatialAttention(Attention):
    """Single-head self-attention over the pixels with a residual, as in the autoencoder: (B, C, H, W) -> the same."""

    def __init__(self, channels: int, *, groups: int, eps: float) -> None:
        super().__init__(channels, 1, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        return x + super().forward(tokens).transpose(1, 2).unflatten(2, x.shape[2:])


class GEGLU(nn.Module):
    """Gated GELU (Shazeer 2020): (..., in) -> (..., out)."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inner, 2 * outer)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # diffusers keeps a dropout at index 1
        self.net = nn.ModuleList([GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each normalised before and added to its input."""

    def __init__(self, channels: int, heads: int, context: int, *, upcast: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads, upcast=upcast)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context=context, upcast=upcast)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2D(nn.Module):
    """Transformer blocks over the pixels: (B, C, H, W), context (B, M, context) -> (B, C, H, W).

    Within, the channels are the largest multiple of the heads, as in diffusers: 30 channels are 28 for 4 heads.
    """

    def __init__(
        self, channels: int, heads: int, context: int, *, depth: int, groups: int, linear: bool, upcast: bool = False
    ) -> None:
        super().__init__()
        self.linear = linear
        inner = channels // heads * heads
        self.norm = nn.GroupNorm(groups, channels, 1e-6)
        self.proj_in = nn.Linear(channels, inner) if linear else nn.Conv2d(channels, inner, 1)
        blocks = (TransformerBlock(inner, heads, context, upcast=upcast) for _ in range(depth))
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = nn.Linear(inner, channels) if linear else nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.norm(x)
        if not self.linear:
            h = self.proj_in(h)
        h = h.flatten(2).transpose(1, 2)  # (B, HW, C)
        if self.linear:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, context)
        if self.linear:
            h = self.proj_out(h)
        h = h.transpose(1, 2).unflatten(2, x.shape[2:])
        if not self.linear:
            h = self.proj_out(h)
        return x + h
