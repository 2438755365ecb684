"""Define IP-Adapter, by which a U-Net's cross-attention reads an image too (Ye et al. 2023, arXiv:2308.06721).

State-dict keys are those of diffusers' image projections; the keys and values of an image are `to_k_ip` and `to_v_ip`,
as in the adapters' own files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmrt.model.config import RawConfig
from ldmrt.model.networks.attention import Attention, Transformer2D
from ldmrt.model.networks.unet import UNet
from ldmrt.model.networks.unet_encoder import levels
from ldmrt.runtime.errors import LdmrtError

HEAD = 64  # the width of a resampler's heads
TOKENS = 4  # that the linear projection makes of an embedding


class Projection(nn.Module):
    """Turns what an image encoder gives into tokens that the U-Net's cross-attention reads.

    Attributes:
        inner: The width of what it reads.
        width: The width of the tokens.
        tokens: How many they are; 0 for as many as it reads states.
        layered: Whether it reads the states of the encoder's last layer but one, and not its embedding.
    """

    layered: ClassVar[bool] = True

    def __init__(self, inner: int, width: int, tokens: int = 0) -> None:
        """Take the widths of what it reads and of the tokens, and their number."""
        super().__init__()
        self.inner, self.width, self.tokens = inner, width, tokens


class ImageProjection(Projection):
    """Makes four tokens of an image's embedding: a linear layer and a norm."""

    layered: ClassVar[bool] = False

    def __init__(self, inner: int, width: int) -> None:
        """Build both, from embeddings of width `inner` to tokens of width `width`."""
        super().__init__(inner, width, TOKENS)
        self.image_embeds = nn.Linear(inner, TOKENS * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, image_embeds: Tensor) -> Tensor:
        """Project embeddings (B, inner); returns (B, 4, width)."""
        return self.norm(self.image_embeds(image_embeds).unflatten(-1, (TOKENS, -1)))


class PlainFeedForward(nn.Module):
    """Runs a linear layer, GELU and a linear layer, under diffusers' keys net.0.proj and net.2."""

    def __init__(self, inner: int, hidden: int, outer: int, *, bias: bool) -> None:
        """Build both layers, with biases or without."""
        super().__init__()
        first = nn.ModuleDict({"proj": nn.Linear(inner, hidden, bias=bias)})
        # diffusers keeps a dropout at index 1
        self.net = nn.ModuleList([first, nn.Identity(), nn.Linear(hidden, outer, bias=bias)])

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token of x (..., inner) by itself; returns (..., outer)."""
        first: nn.ModuleDict = self.net[0]  # type: ignore[assignment]
        return self.net[2](F.gelu(first["proj"](x)))


class FullProjection(Projection):
    """Makes a token of each of an image's states: two linear layers and a norm, of adapters for full faces."""

    def __init__(self, inner: int, width: int) -> None:
        """Build the layers, from states of width `inner` to tokens of width `width`."""
        super().__init__(inner, width)
        self.ff = PlainFeedForward(inner, inner, width, bias=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, image_embeds: Tensor) -> Tensor:
        """Project states (B, N, inner); returns (B, N, width)."""
        return self.norm(self.ff(image_embeds))


class ResamplerAttention(nn.Module):
    """Lets learnt tokens attend to an image's states and to themselves; no projection has a bias."""

    def __init__(self, width: int, heads: int) -> None:
        """Build the projections, to `heads` of width 64."""
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, heads * HEAD, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(heads * HEAD, width, bias=False)])

    def forward(self, tokens: Tensor, source: Tensor) -> Tensor:
        """Let tokens (B, T, width) attend to a source (B, M, width); returns (B, T, width)."""
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.to_q(tokens), self.to_k(source), self.to_v(source))
        )
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ResamplerBlock(nn.Module):
    """Adds attention and a feed-forward network to the learnt tokens."""

    def __init__(self, width: int, heads: int, outer: int) -> None:
        """Build both; the feed-forward network has `outer` channels inside."""
        super().__init__()
        self.ln0, self.ln1 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = ResamplerAttention(width, heads)
        self.ff = nn.ModuleList([nn.LayerNorm(width), PlainFeedForward(width, outer, width, bias=False)])

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Transform tokens (B, T, width), which read states x (B, N, width); returns (B, T, width)."""
        normed = self.ln1(tokens)
        tokens = self.attn(normed, torch.cat([self.ln0(x), normed], dim=1)) + tokens
        return self.ff[1](self.ff[0](tokens)) + tokens


class Resampler(Projection):
    """Makes tokens of an image's states by learnt queries, of adapters that are called plus."""

    def __init__(self, inner: int, width: int, *, hidden: int, heads: int, tokens: int, depth: int, outer: int) -> None:
        """Build the blocks.

        Args:
            inner: Width of the encoder's states.
            width: Width of the tokens that come out.
            hidden: Width of the tokens inside.
            heads: Number of attention heads, each of width 64.
            tokens: Number of tokens.
            depth: Number of blocks.
            outer: Channels inside the feed-forward networks.
        """
        super().__init__(inner, width, tokens)
        self.latents = nn.Parameter(torch.empty(1, tokens, hidden))
        self.proj_in = nn.Linear(inner, hidden)
        self.proj_out = nn.Linear(hidden, width)
        self.norm_out = nn.LayerNorm(width)
        self.layers = nn.ModuleList(ResamplerBlock(hidden, heads, outer) for _ in range(depth))

    def forward(self, image_embeds: Tensor) -> Tensor:
        """Project states (B, N, inner); returns (B, tokens, width)."""
        x = self.proj_in(image_embeds)
        tokens = self.latents.expand(x.shape[0], -1, -1)
        for block in self.layers:
            tokens = block(x, tokens)
        return self.norm_out(self.proj_out(tokens))


class ImageKeysAndValues(nn.Module):
    """Holds the projections by which one cross-attention reads the tokens of an image."""

    def __init__(self, context: int, inner: int) -> None:
        """Build both, from tokens of width `context` to all heads together, `inner`."""
        super().__init__()
        self.to_k_ip = nn.Linear(context, inner, bias=False)
        self.to_v_ip = nn.Linear(context, inner, bias=False)


class ImageAttention(Attention):
    """Adds attention to an image's tokens to that to a prompt's, with a scale (equation 5)."""

    def __init__(self, text: Attention, image: ImageKeysAndValues, place: int) -> None:
        """Take over the projections of both; `place` is that of the scale among all transformers'."""
        nn.Module.__init__(self)
        self.heads, self.upcast, self.place = text.heads, text.upcast, place
        self.to_q, self.to_k, self.to_v, self.to_out = text.to_q, text.to_k, text.to_v, text.to_out
        self.to_k_ip, self.to_v_ip = image.to_k_ip, image.to_v_ip

    def forward(self, x: Tensor, context: tuple[Tensor, Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        """Let tokens x (B, L, C) attend to a prompt and an image.

        Args:
            x: The tokens.
            context: The prompt's tokens (B, M, context), the image's (B, T, context), and the scales of all
                transformers (B, transformers).

        Returns:
            (B, L, C).
        """
        text, image, scales = context
        queries = self.to_q(x)
        attended = self.attended(queries, self.to_k(text), self.to_v(text))
        shown = self.attended(queries, self.to_k_ip(image), self.to_v_ip(image))
        scale = scales[:, self.place].reshape(-1, 1, 1)
        return self.to_out[0](attended + (shown * scale).to(attended.dtype))


@dataclass(frozen=True)
class ImagePrompt:
    """Holds the networks of an IP-Adapter that run before the U-Net.

    Attributes:
        encoder: Gives the embedding of an image, or its states.
        projection: One of the classes above, which makes tokens of them.
        blocks: The U-Net's transformers, such as "down.1.0" and "mid", in the order of their scales.
        size: Height and width of the encoder's images in pixels.
        config: The encoder's config.json.
    """

    encoder: nn.Module
    projection: Projection
    blocks: tuple[str, ...]
    size: int
    config: RawConfig


def transformers_of(unet: UNet) -> Iterator[tuple[str, Transformer2D]]:
    """Yield the transformers of a U-Net, in the order of diffusers' modules: down, up, then the middle.

    Their names are the levels and places of diffusers' scales: "down.1.0", "up.0.2", "mid".
    """
    for way, blocks in (("down", unet.down_blocks), ("up", unet.up_blocks)):
        for number, level in enumerate(levels(blocks)):
            for place, transformer in enumerate(level.attentions or ()):
                yield f"{way}.{number}.{place}", cast(Transformer2D, transformer)
    if unet.mid_block is not None:
        for transformer in unet.mid_block.attentions or ():
            yield "mid", cast(Transformer2D, transformer)


def image_layers(unet: UNet) -> nn.ModuleDict:
    """Build what each cross-attention of a U-Net reads an image by, under the numbers that adapters' files have.

    Raises:
        LdmrtError: A level attends to the context alone, as an upscaler's.
    """
    if any(unet.config.only_cross):
        expected = "self-attention in each transformer"
        raise LdmrtError("ip_adapter", "does not fit this U-Net in only_cross_attention", expected=expected)
    layers = nn.ModuleDict()
    for _, transformer in transformers_of(unet):
        for block in transformer.transformer_blocks:
            to_k: nn.Linear = block.attn2.to_k  # type: ignore[union-attr, assignment]
            layers[str(2 * len(layers) + 1)] = ImageKeysAndValues(to_k.in_features, to_k.out_features)
    return layers


def attach(unet: UNet, layers: nn.ModuleDict) -> tuple[str, ...]:
    """Let every cross-attention of a U-Net read an image too, and return the names of its transformers."""
    names, each = list[str](), iter(layers.values())
    for place, (name, transformer) in enumerate(transformers_of(unet)):
        names.append(name)
        for block in transformer.transformer_blocks:
            block.attn2 = ImageAttention(block.attn2, next(each), place)  # type: ignore[arg-type]
    return tuple(names)
