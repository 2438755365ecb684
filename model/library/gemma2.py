"""Prepare Gemma 2, which is Sana's text encoder (Gemma Team 2024, arXiv:2408.00118), to be traced."""

from typing import Any

import torch
from torch import Tensor, nn

from ldmrt.runtime.errors import LdmrtError

from .masked_attention import MASKED_SCORE

GEMMA = "Gemma2Model"


class Norm(nn.Module):
    """Divides states by their root mean square as Gemma2RMSNorm does, in float32; its weight is 1 less than the scale.

    Exporters make one operator of a square, a mean and a root, which in half precision has no scale in float32. So a
    product stands for the square there.
    """

    weight: Tensor
    eps: float

    def forward(self, states: Tensor) -> Tensor:
        """Return states (..., width) of the same dtype."""
        wide = states.float()
        squares = wide.pow(2) if states.dtype == torch.float32 else wide * wide
        scaled = wide * torch.rsqrt(squares.mean(-1, keepdim=True) + self.eps) * (1.0 + self.weight.float())
        return scaled.to(states.dtype)


class ScaledEmbedding(nn.Embedding):
    """Looks tokens up, times the square root of their width: a constant in place of a buffer that no file holds."""

    scale: float

    def forward(self, input: Tensor) -> Tensor:
        """Return embeddings (B, tokens, width) of ids (B, tokens)."""
        return super().forward(input) * self.scale


class Rotary(nn.Module):
    """Computes the rotary positions of tokens as Gemma2RotaryEmbedding does, from frequencies that are constants."""

    def __init__(self, frequencies: Tensor) -> None:
        """Take the frequencies, (head / 2,)."""
        super().__init__()
        self.frequencies: list[float] = frequencies.tolist()

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, (1, tokens, head) both, for states (B, tokens, width), of their dtype."""
        frequencies = torch.tensor(self.frequencies, dtype=torch.float32, device=states.device)
        places = torch.arange(states.shape[1], dtype=torch.float32, device=states.device)
        angles = (places[:, None] * frequencies[None]).repeat(1, 2)[None]
        return angles.cos().to(states.dtype), angles.sin().to(states.dtype)


class CausalMask(nn.Module):
    """Lets a token see itself and those before it, but for the padding; in some layers only the nearest of them.

    Padding behind a window in which there is no token sees itself, where transformers' sees everything: no token reads
    its states, and the exponentials of scores that are masked alike would differ from one library to the other.
    """

    def forward(self, seen: Tensor, states: Tensor, window: int | None = None) -> Tensor:
        """Return what is added to the scores of attention, (B, 1, queries, keys).

        Args:
            seen: (B, tokens), true for tokens that are no padding.
            states: (B, tokens, width), whose dtype the mask gets.
            window: How many tokens are seen, with the token itself; all of those before it by default.
        """
        places = torch.arange(seen.shape[1], device=seen.device)
        before = places[:, None] - places[None]
        near = before >= 0 if window is None else (before >= 0) & (before < window)
        allowed = near[None, None] & seen[:, None, None]
        if window is not None and window < seen.shape[1]:
            allowed = allowed | (~allowed.any(dim=-1, keepdim=True) & (before == 0))
        return torch.where(allowed, 0.0, MASKED_SCORE).to(states.dtype)


def prepared(encoder: nn.Module) -> nn.Module:
    """Put modules of our own in the place of what exporters cannot follow or would compute otherwise.

    Args:
        encoder: A Gemma2Model of transformers, which is changed: its embeddings, its rotary positions and its masks.

    Raises:
        LdmrtError: Its positions or its attention are of an unsupported kind.
    """
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm, Gemma2RotaryEmbedding

    model: Any = encoder
    config = model.config
    stated = {**config.rope_parameters, "use_bidirectional_attention": bool(config.use_bidirectional_attention)}
    for name, usual in (("rope_type", "default"), ("use_bidirectional_attention", False)):
        if stated[name] != usual:
            problem = f"config has an invalid {name}"
            raise LdmrtError("text_encoder", problem, expected=usual, found=stated[name])
    embeddings = model.embed_tokens
    del embeddings.embed_scale
    embeddings.__class__, embeddings.scale = ScaledEmbedding, float(config.hidden_size) ** 0.5
    for module in model.modules():
        if isinstance(module, Gemma2RMSNorm):
            module.__class__ = Norm  # type: ignore[assignment]
    with torch.device("cpu"):  # as the network may be built on the meta device
        frequencies, _ = Gemma2RotaryEmbedding.compute_default_rope_parameters(config)
    model.rotary_emb, model.causal_mask, model.sliding_mask = Rotary(frequencies), CausalMask(), CausalMask()
    return encoder
