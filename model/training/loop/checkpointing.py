"""Compute activations again where the gradient needs them, in the place of keeping them (Chen et al. 2016).

Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ldmrt.model.networks.attention import SpatialAttention, Transformer2D
from ldmrt.model.networks.blocks import ResnetBlock
from ldmrt.model.networks.ldm_bert import LDMBertLayer

BLOCKS = (ResnetBlock, SpatialAttention, Transformer2D, LDMBertLayer)
OTHERS = ("CLIPEncoderLayer",)  # of transformers, which is not imported for this


@dataclass(frozen=True)
class Recomputed:
    """Runs a block, keeps its inputs alone, and runs it again for the gradient."""

    forward: Callable[..., Any]

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run the block; where no gradient is asked for, it runs as ever."""
        if not torch.is_grad_enabled():
            return self.forward(*args, **options)
        return checkpoint(self.forward, *args, use_reentrant=False, **options)


def checkpoint_blocks(module: nn.Module) -> int:
    """Let each resnet, transformer and layer of a text encoder within a module keep its inputs alone.

    Losses and gradients keep their bits where kernels give the same ones twice, as they do on the CPU. A step takes
    longer, for every block runs once more.

    Args:
        module: The networks, which change in place.

    Returns:
        How many blocks there are.
    """
    blocks = [child for child in module.modules() if isinstance(child, BLOCKS) or type(child).__name__ in OTHERS]
    for block in blocks:
        if not isinstance(vars(block).get("forward"), Recomputed):
            vars(block)["forward"] = Recomputed(block.forward)  # found before the method of the class
    return len(blocks)
