"""Define attention, feed-forward and the transformer of the U-Net. Attribute names are diffusers' state-dict keys."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALVES = (torch.float16, torch.bfloat16)
# What cross-attention reads: the tokens of a prompt, perhaps with an image's and their scale in each transformer.
Context = Tensor | tuple[Tensor, Tensor, Tensor]


class Attention(nn.Module):
    """Computes multi-head attention (Vaswani et al. 2017, section 3.2) by torch's scaled_dot_product_attention."""

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        inner: int | None = None,
        context: int | None = None,
        bias: bool = False,
        upcast: bool = False,
    ) -> None:
        """Build the four projections.

        Args:
            channels: Width C of the tokens.
            heads: Number of heads.
            inner: Width of all heads together; None for C.
            context: Width of the tokens that keys and values are made of; None where those are the input's own.
            bias: Whether the projections of queries, keys and values have biases.
            upcast: Whether scores are computed in float32 in a network of half precision, where those of some models
                overflow.
        """
        super().__init__()
        inner, context = inner or channels, context or channels
        self.heads = heads
        self.upcast = upcast
        self.to_q = nn.Linear(channels, inner, bias=bias)
        self.to_k = nn.Linear(context, inner, bias=bias)
        self.to_v = nn.Linear(context, inner, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Let tokens x (B, L, C) attend to a context (B, M, context), or to themselves; returns (B, L, C)."""
        source = x if context is None else context
        return self.to_out[0](self.attended(self.to_q(x), self.to_k(source), self.to_v(source)))

    def attended(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Weigh values (B, M, inner) by how queries (B, L, inner) agree with keys (B, M, inner); (B, L, inner)."""
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, L, inner/heads)
            for projected in (queries, keys, values)
        )
        if self.upcast and q.dtype in HALVES:
            attended = F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
        return attended.transpose(1, 2).flatten(2)


class SpatialAttention(Attention):
    """Adds self-attention over the pixels to its input, as in the autoencoder and in U-Nets without context."""

    def __init__(
        self, channels: int, *, groups: int | None, eps: float, head_width: int | None = None, scale: float = 1.0
    ) -> None:
        """Build an attention with biases, and the group norm before it.

        Args:
            channels: Width C of the features.
            groups: Groups of the norm; None for no norm.
            eps: Added to the variance in the norm.
            head_width: Width of a head, of which there are as many as C has room for; None for one head of width C.
            scale: What the sum of input and attention is divided by.
        """
        head_width = head_width or channels
        heads = channels // head_width
        super().__init__(channels, heads, inner=heads * head_width, bias=True)
        self.scale = scale
        self.group_norm = None if groups is None else nn.GroupNorm(groups, channels, eps)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Add the attention over all H * W pixels to features x (B, C, H, W); a context is ignored."""
        normed = x if self.group_norm is None else self.group_norm(x)
        tokens = normed.flatten(2).transpose(1, 2)  # (B, HW, C)
        out = x + super().forward(tokens).transpose(1, 2).unflatten(2, x.shape[2:])
        return out if self.scale == 1 else out / self.scale


class GEGLU(nn.Module):
    """Gates a linear layer by the GELU of another one (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, inner: int, outer: int) -> None:
        """Build one layer from `inner` channels to both halves, values and gates, of `outer` channels each."""
        super().__init__()
        self.proj = nn.Linear(inner, 2 * outer)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the values of x (..., inner) by the GELU of their gates; returns (..., outer)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Widens each token four times by a GEGLU, and narrows it by a linear layer."""

    def __init__(self, channels: int) -> None:
        """Build both layers; the state-dict keys are net.0 and net.2, as in diffusers."""
        super().__init__()
        # diffusers keeps a dropout at index 1
        self.net = nn.ModuleList([GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token of x (..., C) by itself; returns (..., C)."""
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Chains self-attention, cross-attention and feed-forward, each normalised before and added to its input.

    With `only_cross` the first attention reads the context too, as in upscalers, whose images have too many pixels for
    attention among themselves.
    """

    def __init__(
        self, channels: int, heads: int, context: int, *, upcast: bool = False, only_cross: bool = False
    ) -> None:
        """Build a block of width `channels`, whose cross-attention reads tokens of width `context`."""
        super().__init__()
        self.only_cross = only_cross
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads, context=context if only_cross else None, upcast=upcast)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context=context, upcast=upcast)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Transform tokens x (B, L, C), which read a context (B, M, context); returns (B, L, C)."""
        x = x + self.attn1(self.norm1(x), context if self.only_cross else None)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2D(nn.Module):
    """Runs transformer blocks over the pixels and adds the result to its input (Rombach et al. 2022, section 3.3).

    Within, the channels are the largest multiple of the heads, as in diffusers: 30 channels are 28 for 4 heads.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        context: int,
        *,
        depth: int,
        groups: int,
        linear: bool,
        upcast: bool = False,
        only_cross: bool = False,
    ) -> None:
        """Build `depth` blocks between two projections.

        Args:
            channels: Width C of the features.
            heads: Number of attention heads.
            context: Width of the context's tokens.
            depth: Number of transformer blocks.
            groups: Groups of the norm before the first projection.
            linear: Whether the projections are linear layers (Stable Diffusion 2 and XL) or 1x1 convolutions (1.x).
            upcast: Whether attention scores are computed in float32, see `Attention`.
            only_cross: Whether all attention is to the context, see `TransformerBlock`.
        """
        super().__init__()
        self.linear = linear
        inner = channels // heads * heads
        self.norm = nn.GroupNorm(groups, channels, 1e-6)
        self.proj_in = nn.Linear(channels, inner) if linear else nn.Conv2d(channels, inner, 1)
        blocks = (TransformerBlock(inner, heads, context, upcast=upcast, only_cross=only_cross) for _ in range(depth))
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = nn.Linear(inner, channels) if linear else nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Add the transformed pixels to features x (B, C, H, W); the context is (B, M, context)."""
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
