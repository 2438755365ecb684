"""Pairs of small U-Nets with the same weights, ours and diffusers', and how far apart they are."""

import json
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ldmrt.model import UNet, UNetConfig

CROSS, PLAIN = ("CrossAttnDownBlock2D", "DownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
TWO: dict[str, Any] = {
    "down_block_types": CROSS,
    "up_block_types": PLAIN[::-1],
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": 2,
}
THREE: dict[str, Any] = {
    **TWO,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (16, 32, 48),
}
# In float64 another order of sums makes 1e-14, and a norm's eps of 1e-6 for 1e-5 makes 1e-7 or more.
CLOSE = 1e-9


def pair(config: dict[str, Any]) -> tuple[UNet, UNet2DConditionModel]:
    """Ours, read from their whole config, and theirs; no weight keeps the one or zero that hides a mistake."""
    torch.manual_seed(1)
    theirs = UNet2DConditionModel(**config).double().eval()
    with torch.no_grad():
        for value in theirs.parameters():
            value.add_(0.1 * torch.randn_like(value))
    ours = UNet(UNetConfig.read(json.loads(json.dumps(dict(theirs.config))))).double().eval()  # lists, as in a file
    assert list(ours.state_dict())
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@torch.no_grad()
def difference(
    ours: UNet, theirs: UNet2DConditionModel, size: tuple[int, int], timestep: Tensor, **conditioning: Tensor
) -> float:
    """The largest one, relative to the largest value."""
    generator = torch.Generator().manual_seed(2)
    sample = torch.randn(len(timestep), ours.config.in_channels, *size, generator=generator).double()
    context = torch.randn(len(timestep), 5, ours.config.cross_attention_dim, generator=generator).double()
    expected = theirs(sample, timestep, context, **conditioning).sample
    found = ours(sample, timestep, context, **conditioning)
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())
