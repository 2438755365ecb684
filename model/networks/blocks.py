"""Define the blocks that U-Net and autoencoder share. Attribute names are diffusers' state-dict keys."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmrt.runtime.errors import LdmrtError

# The activations of diffusers' networks by their names in configs, which may be in upper or lower case.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "relu": F.relu,
}


Resize = Callable[[Tensor, torch.Size | None], Tensor]


def halve(x: Tensor, _: torch.Size | None = None) -> Tensor:
    """Average features (B, C, H, W) over squares of two; returns (B, C, H/2, W/2), rounded down."""
    return F.avg_pool2d(x, 2)


def double(x: Tensor, size: torch.Size | None = None) -> Tensor:
    """Enlarge features (B, C, H, W) by nearest neighbours to (B, C, 2H, 2W), or to a `size` (height, width).

    The size is one less than the double where a side was odd before it was halved.
    """
    if size is None:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.interpolate(x, size=size, mode="nearest")


class ResnetBlock(nn.Module):
    """Adds to its input norm, activation, convolution, twice, with the time embedding added between the two.

    Source: the U-Net of Ho et al. 2020 (arXiv:2006.11239, appendix B), after He et al. 2016. With `scale_shift` the
    time embedding scales and shifts what the second norm made (Nichol & Dhariwal 2021, arXiv:2102.09672).
    """

    def __init__(
        self,
        inner: int,
        outer: int,
        *,
        groups: int,
        eps: float,
        time_channels: int | None = None,
        scale_shift: bool = False,
        resize: Resize | None = None,
        act: str = "silu",
        outer_groups: int | None = None,
        shortcut: bool = False,
        scale: float = 1.0,
    ) -> None:
        """Build a block from `inner` to `outer` channels; where they differ, the shortcut is a 1x1 convolution.

        Args:
            inner: Channels of the input.
            outer: Channels of the output.
            groups: Groups of both norms, or of the first.
            eps: Added to the variance in both norms.
            time_channels: Width of the time embedding; None where there is no time, as in the autoencoder.
            scale_shift: Whether the time scales and shifts the second norm's output, in the place of an addition.
            resize: What changes the size, of input and branch, before the first convolution; None keeps it.
            act: A name of `ACTIVATIONS`, in any case.
            outer_groups: Groups of the second norm; None for as many as in the first.
            shortcut: Whether the shortcut is a convolution anyway.
            scale: What the sum of shortcut and branch is divided by.
        """
        super().__init__()
        self.scale_shift, self.resize, self.scale = scale_shift, resize, scale
        self.act = ACTIVATIONS[act.lower()]
        self.norm1 = nn.GroupNorm(groups, inner, eps)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        if time_channels is not None:
            self.time_emb_proj = nn.Linear(time_channels, 2 * outer if scale_shift else outer)
        self.norm2 = nn.GroupNorm(outer_groups or groups, outer, eps)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        if shortcut or inner != outer:
            self.conv_shortcut = nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor, time: Tensor | None = None, size: torch.Size | None = None) -> Tensor:
        """Transform features x (B, inner, H, W), given the time embedding (B, time_channels); (B, outer, H, W).

        A block that doubles its input doubles it to a `size` (height, width), if one is given.
        """
        h = self.act(self.norm1(x))
        if self.resize is not None:
            x, h = self.resize(x, size), self.resize(h, size)
        h = self.conv1(h)
        if time is None:
            h = self.norm2(h)
        else:
            told = self.time_emb_proj(self.act(time))[:, :, None, None]
            if self.scale_shift:
                scale, shift = told.chunk(2, dim=1)
                h = self.norm2(h) * (1 + scale) + shift
            else:
                h = self.norm2(h + told)
        h = self.conv2(self.act(h))
        out = h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)
        return out if self.scale == 1 else out / self.scale


class Downsample(nn.Module):
    """Halves height and width by a strided 3x3 convolution."""

    def __init__(self, channels: int, *, padding: int) -> None:
        """Build the convolution; `padding` 0 pads on the right and below only, as the autoencoder was trained."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor, _: Tensor | None = None) -> Tensor:
        """Halve features x (B, C, H, W), whatever the time; (B, C, H/2, W/2), where padding 1 rounds up and 0 down."""
        if self.conv.padding == (0, 0):
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles height and width by nearest neighbours and convolves the result, 3x3."""

    def __init__(self, channels: int) -> None:
        """Build the convolution, which keeps the number of channels."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, _: Tensor | None = None, size: torch.Size | None = None) -> Tensor:
        """Enlarge features x (B, C, H, W), whatever the time, to (B, C, 2H, 2W) or to a `size`, see `double`."""
        return self.conv(double(x, size))


class Level(nn.Module):
    """Holds one resolution of a network: resnets, their attentions if any, then a change of size if any."""

    def __init__(
        self,
        resnets: Iterable[nn.Module],
        attentions: Iterable[nn.Module] | None = None,
        *,
        down: nn.Module | None = None,
        up: nn.Module | None = None,
    ) -> None:
        """Collect the blocks under diffusers' names; `attentions` are one for each resnet, or fewer."""
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = None if attentions is None else nn.ModuleList(attentions)
        self.downsamplers = None if down is None else nn.ModuleList([down])
        self.upsamplers = None if up is None else nn.ModuleList([up])


class TimestepEmbedding(nn.Module):
    """Embeds sinusoidal features by two linear layers; a projected condition may be added to the features first."""

    def __init__(
        self, inner: int, outer: int, *, condition: int | None = None, act: str = "silu", post_act: str | None = None
    ) -> None:
        """Build both layers.

        Args:
            inner: Number of features.
            outer: Width of the embedding.
            condition: Width of the condition that is added to the features; None where there is none.
            act: The activation between the layers, a name of `ACTIVATIONS`.
            post_act: The activation after the second layer; None for no activation.
        """
        super().__init__()
        self.act = ACTIVATIONS[act.lower()]
        self.post_act = None if post_act is None else ACTIVATIONS[post_act.lower()]
        self.linear_1 = nn.Linear(inner, outer)
        self.cond_proj = None if condition is None else nn.Linear(condition, inner, bias=False)
        self.linear_2 = nn.Linear(outer, outer)

    def forward(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        """Embed features (B, inner) with a condition (B, condition), if there is one; returns (B, outer)."""
        if self.cond_proj is not None and condition is not None:
            features = features + self.cond_proj(condition)
        time = self.linear_2(self.act(self.linear_1(features)))
        return time if self.post_act is None else self.post_act(time)


def sinusoids(t: Tensor, channels: int, *, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Compute sinusoidal features of timesteps (Vaswani et al. 2017, section 3.5).

    The angles reach 1000 and need float32 whatever the model's precision: in float16 they are wrong by 0.42.

    Args:
        t: Timesteps (B,) of any dtype, in model time: 0 to 999 for Stable Diffusion.
        channels: Number of features; an odd number ends with a zero.
        flip_sin_to_cos: Whether the cosines come before the sines.
        freq_shift: Subtracted from the number of frequencies in the exponent; 1 makes the last one exactly 1e-4.

    Returns:
        Features (B, channels), float32.
    """
    half = channels // 2
    frequencies = torch.exp(
        -9.210340371976184 * torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    )
    angles = t.float()[:, None] * frequencies[None, :]
    sin, cos = torch.sin(angles), torch.cos(angles)
    features = torch.cat([cos, sin] if flip_sin_to_cos else [sin, cos], dim=-1)
    return F.pad(features, (0, 1)) if channels % 2 else features


def known_activation(component: str, config: object, *names: str) -> None:
    """Refuse a config in which one of these fields is neither None nor an activation of diffusers."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value.lower() not in ACTIVATIONS:
            raise LdmrtError(component, f"unsupported {name}", expected=", ".join(ACTIVATIONS), found=repr(value))
