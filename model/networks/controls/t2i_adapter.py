"""Define T2I-Adapter, whose features are added in the U-Net's down blocks (Mou et al. 2023, arXiv:2302.08453).

State-dict keys and config fields are those of diffusers' T2IAdapter.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ldmrt.model.config import RawConfig, from_config, positive
from ldmrt.runtime.errors import LdmrtError

TYPES = ("full_adapter", "full_adapter_xl", "light_adapter")


@dataclass(frozen=True)
class AdapterConfig:
    """Holds the config of T2IAdapter; the defaults are diffusers'."""

    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    downscale_factor: int = 8
    adapter_type: str = "full_adapter"

    def __post_init__(self) -> None:
        """Refuse sizes below 1, an unsupported type and widths that do not fit it."""
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
    def read(cls, config: RawConfig) -> "AdapterConfig":
        """Read the content of diffusers' config.json; see `from_config`."""
        return from_config(cls, config, {}, "adapter")

    @property
    def pixels(self) -> int:
        """The number of channels after the pixel unshuffle, which moves squares of pixels into channels."""
        return self.in_channels * self.downscale_factor**2

    @property
    def blocks(self) -> list[tuple[int, int, bool]]:
        """For each block its width in, its width out, and whether the size is halved first."""
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
        """For each feature its width, and the pixels that one value of it stands for, along one side."""
        features, divisor = list[tuple[int, int]](), self.downscale_factor
        for _, width, halved in self.blocks:
            divisor *= 2 if halved else 1
            features.append((width, divisor))
        return features


class AdapterResnet(nn.Module):
    """Adds convolution, ReLU, convolution to its input."""

    def __init__(self, channels: int, kernel: int) -> None:
        """Build both; the second `kernel` is 1 wide in the full adapter, 3 in the light one."""
        super().__init__()
        self.block1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.block2 = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Transform features x (B, C, H, W); returns the same shape."""
        return x + self.block2(F.relu(self.block1(x)))


class AdapterBlock(nn.Module):
    """Halves the size where it has to, changes the width and runs resnets."""

    def __init__(self, inner: int, outer: int, *, halved: bool, layers: int, light: bool) -> None:
        """Build `layers` resnets of `outer` channels, or of a quarter in the light adapter."""
        super().__init__()
        width = outer // 4 if light else outer
        self.halved = halved
        self.in_conv = nn.Conv2d(inner, width, 1) if light or inner != outer else nn.Identity()
        self.resnets = nn.Sequential(*(AdapterResnet(width, 3 if light else 1) for _ in range(layers)))
        self.out_conv = nn.Conv2d(width, outer, 1) if light else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Transform features x (B, inner, H, W); returns (B, outer, H, W), or half of it, rounded up."""
        if self.halved:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        return self.out_conv(self.resnets(self.in_conv(x)))


class AdapterBody(nn.Module):
    """Moves squares of pixels into channels, then runs the blocks."""

    def __init__(self, config: AdapterConfig) -> None:
        """Build the blocks of the config; the light adapter has no convolution before them."""
        super().__init__()
        light = config.adapter_type == "light_adapter"
        self.unshuffle = nn.PixelUnshuffle(config.downscale_factor)
        self.conv_in = nn.Identity() if light else nn.Conv2d(config.pixels, config.channels[0], 3, padding=1)
        self.body = nn.ModuleList(
            AdapterBlock(inner, outer, halved=halved, layers=config.num_res_blocks, light=light)
            for inner, outer, halved in config.blocks
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature behind every block from an image (B, in_channels, H, W)."""
        x = self.conv_in(self.unshuffle(image))
        features = []
        for block in self.body:
            x = block(x)
            features.append(x)
        return tuple(features)


class Adapter(nn.Module):
    """Turns a control image into residuals for the U-Net's down blocks (Mou et al. 2023, arXiv:2302.08453)."""

    def __init__(self, config: AdapterConfig) -> None:
        """Build the network; its weights stand under `adapter.`, as in diffusers."""
        super().__init__()
        self.config = config
        self.adapter = AdapterBody(config)

    @classmethod
    def from_config(cls, config: RawConfig) -> "Adapter":
        """Build the network of a diffusers config.json, with random weights."""
        return cls(AdapterConfig.read(config))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the residuals, which hold for all timesteps.

        Args:
            image: Control images (B, in_channels, H, W) in [0, 1], RGB; sides are multiples of `downscale_factor`.

        Returns:
            One residual for each down block, and perhaps one for the middle: (B, width, H/d, W/d) with the widths and
            divisors d of `config.features`.
        """
        return self.adapter(image)
