"""Attend to a prompt whose padding is not seen, as PixArt and Sana do, with one mask for all heads."""

from typing import Any

from torch import Tensor, nn

MASKED_SCORE = -10000.0  # is added to the scores of tokens that are not seen


class Mask(nn.Module):
    """Turns the mask of a prompt's tokens into what is added to the scores of attention, as diffusers does."""

    def forward(self, mask: Tensor, tokens: Tensor) -> Tensor:
        """Return 0 for 1, and a number whose exponential is 0 for 0.

        Args:
            mask: (B, keys).
            tokens: (B, queries, width), each of which sees the same keys.

        Returns:
            (B, queries, keys): ONNX Runtime's attention repeats no row.
        """
        return ((1 - mask) * MASKED_SCORE)[:, None].expand(-1, tokens.shape[1], -1)


class MaskedAttention:
    """Attends to a prompt as diffusers' AttnProcessor2_0 and SanaAttnProcessor2_0 do, but with one mask for all heads.

    They repeat the mask for each head: 150 MB in each block of PixArt's, of an image of 1024 pixels.
    """

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """Return what tokens (B, queries, width) read of a prompt (B, keys, width), by a mask (B, queries, keys)."""
        q, k, v = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        if attn.norm_q is not None:
            q, k = attn.norm_q(q), attn.norm_k(k)
        q, k, v = (one.unflatten(2, (attn.heads, -1)).transpose(1, 2) for one in (q, k, v))
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask[:, None])
        projected: Tensor = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return projected
