"""Define the levels of NCSN++: beside the features goes the image itself (Song et al. 2021, appendix H).

On the way down the halved image is added to every level's features; on the way up every level adds a part of the image
that comes out, which is doubled from level to level. Attribute names are diffusers' state-dict keys.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmrt.model.networks.blocks import Level, ResnetBlock

from .fir import fir_double, fir_halve

IMAGE = 3  # channels of the image, whatever the network's input has
SCALE = math.sqrt(2)  # by which a sum of two is divided
MOST = 32  # groups of a norm

Resnet = Callable[..., ResnetBlock]  # resnet(inner, groups=..., resize=...)


def groups_of(channels: int) -> int:
    """Return the number of groups in which these levels normalise so many channels."""
    return min(channels // 4, MOST)


def up_groups(features: int, skip: int, *, attends: bool) -> int:
    """Return the groups of a resnet's first norm on the way up, where diffusers counts those with attention otherwise.

    Args:
        features: Channels that come from below.
        skip: Channels of the skip beside them.
        attends: Whether the level has attention.
    """
    return min(features + skip // 4, MOST) if attends else groups_of(features + skip)


class SkipDown(Level):
    """Holds a level on the way down, which adds the halved image to its halved features."""

    def __init__(
        self,
        inner: Sequence[int],
        width: int,
        resnet: Resnet,
        attentions: Sequence[nn.Module] | None,
        *,
        down: bool,
    ) -> None:
        """Build the level.

        Args:
            inner: Channels of each resnet's input, in order.
            width: Channels of their outputs.
            resnet: Builds a resnet that ends with so many, of its input's channels and the groups of its first norm.
            attentions: One for each resnet, or None.
            down: Whether the level ends with half the size.
        """
        super().__init__([resnet(channels, groups=groups_of(channels)) for channels in inner], attentions)
        if down:
            self.resnet_down = resnet(width, groups=groups_of(width), resize=fir_halve, shortcut=True)
            self.skip_conv = nn.Conv2d(IMAGE, width, 1)

    def forward(self, x: Tensor, time: Tensor, image: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Run the level on features x (B, C, H, W), with the image (B, 3, H, W) that goes beside them.

        Returns:
            The features and the image, both of half the size if the level halves it, and the skips.
        """
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.attentions is not None:
                x = self.attentions[i](x)
            skips.append(x)
        if hasattr(self, "resnet_down"):
            x, image = self.resnet_down(x, time), fir_halve(image)
            x = self.skip_conv(image) + x
            skips.append(x)
        return x, image, skips


class SkipUp(Level):
    """Holds a level on the way up, which adds its part to the image that comes out."""

    def __init__(
        self,
        inner: Sequence[tuple[int, int]],
        width: int,
        resnet: Resnet,
        attention: nn.Module | None,
        *,
        eps: float,
        up: bool,
    ) -> None:
        """Build the level.

        Args:
            inner: Channels of each resnet's features and of the skip beside them, in order.
            width: Channels of their outputs.
            resnet: Builds a resnet that ends with so many, of its input's channels and the groups of its first norm.
            attention: One for all, after the last resnet, or None.
            eps: Added to the variance in the norm of the image's part.
            up: Whether the level ends with twice the size; the last one adds no part to the image.
        """
        attends = attention is not None
        resnets = [resnet(a + b, groups=up_groups(a, b, attends=attends)) for a, b in inner]
        super().__init__(resnets, None if attention is None else [attention])
        if up:
            self.resnet_up = resnet(width, groups=groups_of(width), resize=fir_double, shortcut=True)
            self.skip_norm = nn.GroupNorm(groups_of(width), width, eps)
            self.skip_conv = nn.Conv2d(width, IMAGE, 3, padding=1)

    def forward(
        self, x: Tensor, time: Tensor, skips: Sequence[Tensor], size: torch.Size | None, image: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Run the level on features x (B, C, H, W).

        Args:
            x: The features.
            time: The time embedding.
            skips: The features of the way down that this level takes, one for each resnet, first made first.
            size: Height and width of the next level's features; None where this level does not enlarge.
            image: What the levels before have made of the image, (B, 3, H/2, W/2); None for the first.

        Returns:
            The features, of twice the size or the given size, and the image, (B, 3, H, W).
        """
        for resnet, skip in zip(self.resnets, reversed(skips), strict=True):
            x = resnet(torch.cat([x, skip], dim=1), time)
        if self.attentions is not None:
            x = self.attentions[0](x)
        image = None if image is None else fir_double(image, x.shape[2:])
        if hasattr(self, "resnet_up"):
            part = self.skip_conv(F.silu(self.skip_norm(x)))
            image = part if image is None else image + part
            x = self.resnet_up(x, time, size)
        return x, image
