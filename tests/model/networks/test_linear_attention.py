"""Linear attention reads what diffusers' does, and no NaN where diffusers adds a small number to a denominator of 0."""

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import (
    Attention,
    SanaLinearAttnProcessor2_0,
    SanaMultiscaleAttnProcessor2_0,
    SanaMultiscaleLinearAttention,
)

from ldmrt.model.library.linear_attention import PixelAttention, TokenAttention


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["tokens", "pixels"])
def test_where_no_key_has_a_weight_nothing_is_read(kind: str) -> None:
    """As in diffusers, which adds 1e-15 to the denominator: not a number else."""
    torch.manual_seed(0)
    if kind == "tokens":
        layer: Any = Attention(16, heads=2, dim_head=8)
        processors, x = (SanaLinearAttnProcessor2_0(), TokenAttention()), torch.randn(2, 12, 16)
    else:
        layer = SanaMultiscaleLinearAttention(16, 16, attention_head_dim=4, norm_type="rms_norm")
        processors, x = (SanaMultiscaleAttnProcessor2_0(), PixelAttention()), torch.randn(2, 16, 3, 4)
    with torch.no_grad():
        layer.to_k.weight.copy_(-layer.to_q.weight)
        layer.to_q.weight[::2] = 0
        theirs, ours = (processor(layer, x) for processor in processors)
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-6)  # float32's sums in another order
        layer.to_k.weight.zero_()
        assert torch.isfinite(processors[1](layer, x)).all()
