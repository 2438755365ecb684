"""The transformer of Stable Diffusion 3 with rows that skip some of its blocks, for skip-layer guidance."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class SkippingTransformer(nn.Module):
    """Calls the transformer of Stable Diffusion 3 so that some rows skip some of its blocks.

    `kept_layers`, (batch,), is 1 for a row that runs all blocks, and 0 for one whose states these blocks leave as
    they are. The submodules are called in the order of diffusers' `forward`, which skips for all rows at once.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int]) -> None:
        """Wrap a network, of which these blocks may be skipped."""
        super().__init__()
        self.model, self.layers = model, frozenset(layers)

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, pooled_projections: Tensor,
        kept_layers: Tensor,
    ) -> tuple[Tensor]:  # fmt: skip
        """Return the prediction, (batch, C, h, w)."""
        model: Any = self.model
        height, width = hidden_states.shape[2:]
        temb = model.time_text_embed(timestep.expand(hidden_states.shape[0]), pooled_projections)
        x, context = model.pos_embed(hidden_states).contiguous(), model.context_embedder(encoder_hidden_states)
        kept = (kept_layers > 0.5)[:, None, None]
        for number, block in enumerate(model.transformer_blocks):
            before = context, x
            context, x = block(hidden_states=x, encoder_hidden_states=context, temb=temb, joint_attention_kwargs=None)
            if number in self.layers:
                x = torch.where(kept, x, before[1])
                context = None if context is None else torch.where(kept, context, before[0])  # none of the last block
        x, patch = model.proj_out(model.norm_out(x, temb)), model.config.patch_size
        rows, columns, channels = height // patch, width // patch, model.out_channels
        x = x.reshape(x.shape[0], rows, columns, patch, patch, channels)
        return (torch.einsum("nhwpqc->nchpwq", x).reshape(x.shape[0], channels, rows * patch, columns * patch),)
