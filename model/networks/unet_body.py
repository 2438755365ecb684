"""Define all of a U-Net but what it is told beside the time (Ho et al. 2020, arXiv:2006.11239, appendix B).

State-dict keys and config fields are diffusers'.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ldmrt.model.config import positive
from ldmrt.runtime.errors import LdmrtError

from .attention import Context
from .blocks import ACTIVATIONS, Level
from .configs.encoder_config import EncoderConfig
from .unet_encoder import Attend, UNetEncoder, build_level, levels


@dataclass(frozen=True)
class BodyConfig(EncoderConfig):
    """Holds the fields that every U-Net's config has, and a ControlNet's has not."""

    part: ClassVar[str] = "unet"
    ups: ClassVar[tuple[str, ...]]  # a level's block with attention, and the one without; perhaps others so

    sample_size: int | tuple[int, ...] | None = None  # of the latents: one side, or height and width
    out_channels: int = 4
    up_block_types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what `EncoderConfig` refuses, and unsupported up blocks."""
        super().__post_init__()
        positive(self.part, self, "sample_size", "out_channels")
        if isinstance(self.sample_size, tuple) and len(self.sample_size) != 2:
            problem, expected = "config has an invalid sample_size", "one side, or height and width"
            raise LdmrtError(self.part, problem, expected=expected, found=self.sample_size)
        self.check_blocks("up_block_types", self.ups)

    @property
    def up_channels(self) -> list[list[tuple[int, int]]]:
        """The channels of the features and of the skip that each resnet takes on the way up, by level."""
        widths = self.block_out_channels
        around = zip(widths, self.layers, widths[:1] + widths, widths[1:] + widths[-1:], strict=False)
        return [
            list(zip([below] + [width] * layers, [width] * layers + [above], strict=True))
            for width, layers, above, below in around
        ]

    @abstractmethod
    def up_depths(self, level: int) -> tuple[int, ...]:
        """Return the depth of each attention of a level on the way up, where it has one layer more."""


class UNetBody(UNetEncoder):
    """Runs down blocks, the middle, and up blocks that take the skips in reverse order."""

    config: BodyConfig

    def __init__(
        self,
        config: BodyConfig,
        attend: Attend,
        *,
        condition: int | None = None,
        time_acts: tuple[str | None, str | None] = (None, None),
    ) -> None:
        """Build the network; the arguments are those of `UNetEncoder`."""
        super().__init__(config, attend, condition=condition, time_acts=time_acts)
        widths = config.block_out_channels
        self.up_blocks = nn.ModuleList()
        for level, kind in zip(reversed(range(len(widths))), config.up_block_types, strict=True):
            depths = config.up_depths(level) if kind in config.ups[::2] else ()
            self.up_blocks.append(self.level_up(level, config.up_channels[level], attend, depths))
        self.conv_norm_out = nn.GroupNorm(config.groups(widths[0]), widths[0], config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)
        self.act = ACTIVATIONS[config.outer_act_fn.lower()]

    def level_up(self, level: int, channels: Sequence[tuple[int, int]], attend: Attend, depths: Sequence[int]) -> Level:
        """Build a level of the way up: as `build_level`, of the channels of each resnet's features and of its skip."""
        return build_level(self.config, level, [sum(pair) for pair in channels], attend, depths, up=level > 0)

    def predict(
        self,
        sample: Tensor,
        time: Tensor,
        context: Context | None = None,
        *,
        down_residuals: Sequence[Tensor] = (),
        mid_residual: Tensor | None = None,
        adapter_residuals: Sequence[Tensor] = (),
    ) -> Tensor:
        """Predict once, given the embedded time.

        Args:
            sample: Latents or images (B, in_channels, h, w).
            time: The time embedding of `UNetEncoder.time`.
            context: The context (B, M, width); None for a network that reads none.
            down_residuals: One residual for each skip, of a ControlNet.
            mid_residual: The ControlNet's residual for the middle.
            adapter_residuals: Residuals of a T2I-Adapter, one a level and perhaps one for the middle.

        Returns:
            The prediction (B, out_channels, h, w).

        Raises:
            LdmrtError: There is not one residual for each skip.
        """
        x, skips = self.down(self.conv_in(sample), time, context, adapter_residuals)
        if down_residuals:
            if len(down_residuals) != len(skips):
                found = len(down_residuals)
                raise LdmrtError(self.config.part, "wrong number of down_residuals", expected=len(skips), found=found)
            skips = [skip + residual for skip, residual in zip(skips, down_residuals, strict=True)]
        x = self.middle(x, time, context, adapter_residuals)
        if mid_residual is not None:
            x = x + mid_residual
        for level in levels(self.up_blocks):
            for i, resnet in enumerate(level.resnets):
                x = resnet(torch.cat([x, skips.pop()], dim=1), time)
                if level.attentions is not None:
                    x = level.attentions[i](x, context)
            if level.upsamplers is not None:
                x = level.upsamplers[0](x, time, skips[-1].shape[2:])
        return self.conv_out(self.act(self.conv_norm_out(x)))
