"""The convolutional blocks that the U-Net and the autoencoder share. Attribute names are diffusers' state-dict keys."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmrt.runtime.errors import LdmrtError

# Those of diffusers' networks, by the names that its configs have for them in any case.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "relu": F.relu,
}


class ResnetBlock(nn.Module):
    """norm, activation, conv, twice, with the time embedding added between: (B, in, H, W) -> (B, out, H, W).

    `time_channels` is None where there is no time (the autoencoder).
    """

    def __init__(
        self, inner: int, outer: int, *, groups: int, eps: float, time_channels: int | None = None, act: str = "silu"
    ) -> None:
        super().__init__()
        self.act = ACTIVATIONS[act.lower()]
        self.norm1 = nn.GroupNorm(groups, inner, eps)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        if time_channels is not None:
            self.time_emb_proj = nn.Linear(time_channels, outer)
        self.norm2 = nn.GroupNorm(groups, outer, eps)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        if inner != outer:
            self.conv_shortcut = nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(self.act(self.norm1(x)))
        if time is not None:
            h = h + self.time_emb_proj(self.act(time))[:, :, None, None]
        h = self.conv2(self.act(self.norm2(h)))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Downsample(nn.Module):
    """Strided 3x3 convolution: (B, C, H, W) -> (B, C, H/2, W/2).

    `padding` 0 pads on the right and below only, as the autoencoder was trained.
    """

    def __init__(self, channels: int, *, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv.padding == (0, 0):
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest neighbour, then a 3x3 convolution: (B, C, H, W) -> (B, C, 2H, 2W), or the `size` that is given, which
    is one less where a side was odd before it was halved.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        if size is None:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class Level(nn.Module):
    """One resolution of a network: resnets, their attentions if any, then a change of size if any."""

    def __init__(
        self,
        resnets: Iterable[nn.Module],
        attentions: Iterable[nn.Module] | None = None,
        *,
        down: nn.Module | None = None,
        up: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = None if attentions is None else nn.ModuleList(attentions)
        self.downsamplers = None if down is None else nn.ModuleList([down])
        self.upsamplers = None if up is None else nn.ModuleList([up])


class TimestepEmbedding(nn.Module):
    """Two linear layers on the sinusoidal features, to which a projected condition may be added: (B, in) -> (B, out).

    `condition` is the condition's width, None where there is none. `post_act` follows the second layer.
    """

    def __init__(
        self, inner: int, outer: int, *, condition: int | None = None, act: str = "silu", post_act: str | None = None
    ) -> None:
        super().__init__()
        self.act = ACTIVATIONS[act.lower()]
        self.post_act = None if post_act is None else ACTIVATIONS[post_act.lower()]
        self.linear_1 = nn.Linear(inner, outer)
        self.cond_proj = None if condition is None else nn.Linear(condition, inner, bias=False)
        self.linear_2 = nn.Linear(outer, outer)

    def forward(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        if self.cond_proj is not None and condition is not None:
            features = features + self.cond_proj(condition)
        time = self.linear_2(self.act(self.linear_1(features)))
        return time if self.post_act is None else self.post_act(time)


def sinusoids(t: Tensor, channels: int, *, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Sinusoidal features of the timestep (Vaswani et al. 2017, section 3.5): (B,) -> (B, channels), float32.

    The angles reach 1000 and need float32 whatever the model's precision: in float16 they are wrong by 0.42.
    """
    half = channels // 2
    frequencies = torch.exp(
        -9.210340371976184 * torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    )
    angles = t.float()[:, None] * frequencies[None, :]
    sin, cos = torch.sin(angles), torch.cos(angles)
    features = torch.cat([cos, sin] if flip_sin_to_cos else [sin, cos], dim=-1)
    return F.pad(features, (0, 1)) if channels % 2 else features


def known_activation(component: str, config: Any, *names: str) -> None:
    """Refuse a config in which one of these fields is no activation of diffusers, or None."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value.lower() not in ACTIVATIONS:
            raise LdmrtError(component, f"unsupported {name}", expected=", ".join(ACTIVATIONS), found=repr(value))
