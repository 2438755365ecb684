"""Attend in linear time, as Sana's transformer and its autoencoder do (Xie et al. 2024, arXiv:2410.10629, section 2.2).

    out = V relu(K)^T relu(Q) / (1 relu(K)^T relu(Q))

in float32. Where no key has a weight the numerator is 0 too: diffusers adds 1e-15 to the denominator, which exporters
take for 0 and leave out; here it is the least that a denominator can be. Sums above 2e-8 are the same in both.
"""

from typing import Any

import torch
from torch import Tensor, nn

LEAST = 1e-15


class TokenAttention:
    """Attends to tokens as diffusers' SanaLinearAttnProcessor2_0 does."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: None = None, attention_mask: None = None
    ) -> Tensor:
        """Return what tokens (B, tokens, width) read of one another; the same shape."""
        q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        if attn.norm_q is not None:
            q, k = attn.norm_q(q), attn.norm_k(k)
        q, k, v = (one.unflatten(2, (attn.heads, -1)).transpose(1, 2) for one in (q, k, v))
        q, k, v = q.relu().float(), k.relu().float(), nn.functional.pad(v.float(), (0, 1), value=1.0)
        read = q @ (k.transpose(2, 3) @ v)
        out = (read[..., :-1] / read[..., -1:].clamp(min=LEAST)).transpose(1, 2).flatten(2)
        projected: Tensor = attn.to_out[0](out.to(hidden_states.dtype))
        largest = torch.finfo(torch.float16).max
        return projected.clip(-largest, largest) if projected.dtype == torch.float16 else projected


class PixelAttention:
    """Attends to pixels at several scales as diffusers' SanaMultiscaleAttnProcessor2_0 does.

    diffusers' multiplies in another order where there are fewer pixels than a head has features: the result is the
    same, and a graph for all sizes has one order.
    """

    def __call__(self, attn: Any, hidden_states: Tensor) -> Tensor:
        """Return what pixels (B, width, h, w) read of one another; the same shape."""
        size, last = hidden_states.shape[2:], hidden_states.movedim(1, -1)
        first = torch.cat([attn.to_q(last), attn.to_k(last), attn.to_v(last)], dim=3).movedim(-1, 1)
        scales = torch.cat([first, *(scale(first) for scale in attn.to_qkv_multiscale)], dim=1)
        q, k, v = scales.unflatten(1, (-1, 3, attn.attention_head_dim)).flatten(4).float().unbind(2)
        q, k, v = attn.nonlinearity(q), attn.nonlinearity(k), nn.functional.pad(v, (0, 0, 0, 1), value=1.0)
        read = (v @ k.transpose(2, 3)) @ q
        out = (read[:, :, :-1] / read[:, :, -1:].clamp(min=LEAST)).to(hidden_states.dtype)
        out = attn.to_out(out.flatten(1, 2).unflatten(2, tuple(size)).movedim(1, -1))
        attended = attn.norm_out(out).movedim(-1, 1)
        return attended + hidden_states if attn.residual_connection else attended
