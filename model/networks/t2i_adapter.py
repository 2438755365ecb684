"""T2I-Adapter: a picture's features, added inside the U-Net's down blocks (Mou et al. 2023, arXiv:2302.08453).

State-dict keys and config fields are those of diffusers' T2IAdapter.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ldmrt.model.config import from_config, positive
from ldmrt.runtime.errors import LdmrtError

TYPES = ("full_adapter", "full_adapter_xl", "light_adapter")


@dataclass(frozen=True)
class AdapterConfig:
    """diffusers' config and defaults."""

    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    downscale_factor: int = 8
    adapter_type: str = "full_adapter"

    def __post_init__(self) -> None:
        positive("adapter", self, "in_channels", "channels", "num_res_blocks", "downscale_factor")
        if self.adapter_type not in TYPES:
            problem = f"unsupported adapter_type {self.adapter_type!r}"
            raise LdmrtError("adapter", problem, expected=" or ".join(TYPES))
        if self.adapter_type == "full_adapter_xl" and len(set(self.channels[2:])) > 1:
            problem = "config has invalid channels"
            raise LdmrtError("adapter", problem, expected="the third width to the end", found=self.channels)
        if self.adapter_type == "light_adapter" and min(self.channels) < 4:
            raise LdmrtError("adapter", "config has invalid channels", expected="at least 4", found=self.channels)

    @classmethod
    def read(cls, config: dict[str, Any]) -> "AdapterConfig":
        """From the dict in diffusers' config.json."""
        return from_config(cls, config, {}, "adapter")

    @property
    def pixels(self) -> int:
        """The number of channels once pixels are folded into them."""
        return self.in_channels * self.downscale_factor**2

    @property
    def blocks(self) -> list[tuple[int, int, bool]]:
        """Width in, width out, and whether the size is halved first, of each block."""
        widths = self.channels
        if self.adapter_type == "light_adapter":
            return [
                (self.pixels, widths[0], False),
                *((a, b, True) for a, b in pairwise(widths)),
                (widths[-1], widths[-1], True),
            ]
        halved = (2,) if self.adapter_type == "full_adapter_xl" else range(1, len(widths))
        inner = (widths[0], *widths)
        return [(inner[i], width, i in halved) for i, width in enumerate(widths)]

    @property
    def features(self) -> list[tuple[int, int]]:
        """Width of each feature, and pixels of the picture a value of it, along one side."""
        made, divisor = [], self.downscale_factor
        for _, width, halved in self.blocks:
            divisor *= 2 if halved else 1
            made.append((width, divisor))
        return made


class AdapterResnet(nn.Module):
    """conv, ReLU, conv, added to the input. The second kernel is 1 wide in the full adapter, 3 in the light one."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.block2 = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block2(F.relu(self.block1(x)))


class AdapterBlock(nn.Module):
    """Halve, change the width, then resnets: (B, in, H, W) -> (B, out, H, W) or half of it, rounded up.

    The light adapter's resnets are four times narrower.
    """

    def __init__(self, inner: int, outer: int, *, halved: bool, layers: int, light: bool) -> None:
        super().__init__()
        width = outer // 4 if light else outer
        self.halved = halved
        self.in_conv = nn.Conv2d(inner, width, 1) if light or inner != outer else nn.Identity()
        self.resnets = nn.Sequential(*(AdapterResnet(width, 3 if light else 1) for _ in range(layers)))
        self.out_conv = nn.Conv2d(width, outer, 1) if light else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.halved:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        return self.out_conv(self.resnets(self.in_conv(x)))


class AdapterBody(nn.Module):
    """Pixels folded into channels, then the blocks."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        light = config.adapter_type == "light_adapter"
        self.unshuffle = nn.PixelUnshuffle(config.downscale_factor)
        self.conv_in = nn.Identity() if light else nn.Conv2d(config.pixels, config.channels[0], 3, padding=1)
        self.body = nn.ModuleList(
            AdapterBlock(inner, outer, halved=halved, layers=config.num_res_blocks, light=light)
            for inner, outer, halved in config.blocks
        )

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        x = self.conv_in(self.unshuffle(picture))
        features = []
        for block in self.body:
            x = block(x)
            features.append(x)
        return tuple(features)


class Adapter(nn.Module):
    """Picture (B, in, H, W) in [0, 1] -> one residual for each down block, and perhaps one for the middle."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.adapter = AdapterBody(config)

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        return self.adapter(picture)
