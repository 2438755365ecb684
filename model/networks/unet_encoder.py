"""Define the half of the U-Net that ControlNet copies (Zhang et al. 2023, arXiv:2302.05543).

It embeds the time and holds the down blocks and the middle.

State-dict keys and config fields are diffusers'.
"""

from collections.abc import Sequence
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ldmrt.runtime.errors import LdmrtError

from .attention import Context, Transformer2D
from .blocks import ACTIVATIONS, Downsample, Level, ResnetBlock, TimestepEmbedding, Upsample, double, halve, sinusoids
from .configs.context_config import ADDITIONS, ContextConfig
from .configs.encoder_config import CLASSES, FEATURES, SIZES, TIMES, EncoderConfig
from .score.fourier import GaussianFourier

WHOLE = (torch.int64, torch.int32)  # what a table can be read by


class Attend(Protocol):
    """Builds one attention of a network, which takes features (B, C, h, w) and the context."""

    def __call__(self, level: int, depth: int, /, *, middle: bool) -> nn.Module:
        """Build an attention of a level, or of the middle, with so many blocks."""


def transformer(config: ContextConfig, level: int, depth: int, *, middle: bool) -> Transformer2D:
    """Build a transformer of a level, or of the middle, that reads the context."""
    return Transformer2D(
        config.block_out_channels[level],
        config.heads[level],
        config.cross_attention_dim,
        depth=depth,
        groups=config.groups(config.block_out_channels[level]),
        linear=config.use_linear_projection,
        upcast=bool(config.upcast_attention),
        only_cross=not middle and config.only_cross[level],
    )


def resnets_of(config: EncoderConfig, outer: int, *, scale: float) -> "partial[ResnetBlock]":
    """Return what builds the resnets of a network that end with `outer` channels, of the channels of their inputs."""
    return partial(
        ResnetBlock,
        outer=outer,
        groups=config.groups(outer),
        eps=config.norm_eps,
        time_channels=4 * config.block_out_channels[0],
        scale_shift=config.resnet_time_scale_shift == TIMES[1],
        act=config.act_fn,
        scale=scale,
    )


def build_level(
    config: EncoderConfig,
    level: int,
    inner: Sequence[int],
    attend: Attend,
    depths: Sequence[int] = (),
    *,
    middle: bool = False,
    down: bool = False,
    up: bool = False,
) -> Level:
    """Build one level of the U-Net.

    Args:
        config: The network's config.
        level: Index of the level, from the largest size.
        inner: Channels of each resnet's input, in order.
        attend: What builds the attentions.
        depths: Number of blocks of each attention; empty for a level without attention.
        middle: Whether this is the middle, which has the size of its level.
        down: Whether the level ends with half the size.
        up: Whether the level ends with twice the size.

    Returns:
        The level, whose resnets all end with the width of the config.
    """
    width = config.block_out_channels[level]
    resnet = resnets_of(config, width, scale=config.mid_block_scale_factor if middle else 1.0)
    resnets = [resnet(channels) for channels in inner]
    smaller: nn.Module | None = None
    larger: nn.Module | None = None
    if down:  # by a resnet in levels with attention alone, as in diffusers
        by_resnet = bool(depths) and config.downsample_type == SIZES[1]
        smaller = resnet(width, resize=halve) if by_resnet else Downsample(width, padding=config.downsample_padding)
    if up:
        larger = resnet(width, resize=double) if depths and config.upsample_type == SIZES[1] else Upsample(width)
    attentions = [attend(level, depth, middle=middle) for depth in depths]
    return Level(resnets, attentions or None, down=smaller, up=larger)


class UNetEncoder(nn.Module):
    """Embeds the time and runs the down blocks and the middle: the part that U-Net and ControlNet share."""

    config: EncoderConfig

    def __init__(
        self,
        config: EncoderConfig,
        attend: Attend,
        *,
        condition: int | None = None,
        time_acts: tuple[str | None, str | None] = (None, None),
    ) -> None:
        """Build all but the way up.

        Args:
            config: The network's config.
            attend: What builds the attentions of its levels.
            condition: Width of the guidance embedding that LCM adds to the time; None for none.
            time_acts: Activations that follow the time embedding, before and after the additions to it; None for none.
        """
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_proj = GaussianFourier(widths[0]) if config.time_embedding_type == FEATURES[1] else None
        features = widths[0] if self.time_proj is None else 2 * widths[0]
        self.time_embedding = TimestepEmbedding(
            features, 4 * widths[0], condition=condition, act=config.outer_act_fn, post_act=time_acts[0]
        )
        self.class_embedding: nn.Embedding | TimestepEmbedding | None = None
        if config.class_embed_type == CLASSES[1]:
            self.class_embedding = TimestepEmbedding(features, 4 * widths[0], act=config.class_act_fn)
        elif config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, 4 * widths[0])
        self.time_act = None if time_acts[1] is None else ACTIVATIONS[time_acts[1].lower()]
        if config.addition_embed_type and config.projection_class_embeddings_input_dim:
            self.add_embedding = TimestepEmbedding(config.projection_class_embeddings_input_dim, 4 * widths[0])

        self.down_blocks = nn.ModuleList()
        self.skip_channels = [widths[0]]  # of each skip connection, in the order that they are made
        for level, (kind, width, layers) in enumerate(zip(config.down_block_types, widths, config.layers, strict=True)):
            inner = [self.skip_channels[-1]] + [width] * (layers - 1)
            depths = config.depths(level) if kind in config.downs[::2] else ()
            self.down_blocks.append(self.level_down(level, inner, attend, depths))
            self.skip_channels += [width] * (layers + (level < last))

        self.mid_block: Level | None = None
        resnets, depths = config.middle
        if resnets:
            self.mid_block = build_level(config, last, [widths[last]] * resnets, attend, depths, middle=True)

    def level_down(self, level: int, inner: Sequence[int], attend: Attend, depths: Sequence[int]) -> Level:
        """Build a level of the way down; the arguments are those of `build_level`."""
        last = len(self.config.block_out_channels) - 1
        return build_level(self.config, level, inner, attend, depths, down=level < last)

    def time(
        self,
        sample: Tensor,
        timestep: Tensor,
        condition: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Embed the time and what is added to it; every resnet takes the result.

        Args:
            sample: Latents (B, C, h, w), of which only the dtype matters.
            timestep: Model times (B,).
            condition: LCM's guidance embedding (B, time_cond_proj_dim).
            text_embeds: SDXL's pooled prompt embeddings (B, P).
            time_ids: SDXL's sizes, crop and perhaps score (B, 5 or 6).
            class_labels: Classes (B,), whole numbers or numbers that are embedded as the time is.

        Returns:
            The time embedding (B, 4 * block_out_channels[0]).

        Raises:
            LdmrtError: A condition is missing, not expected by the config, or of another width or type.
        """
        config, dtype = self.config, sample.dtype
        if condition is not None and self.time_embedding.cond_proj is None:
            raise LdmrtError(config.part, "unexpected timestep_cond", hint="the config has no time_cond_proj_dim")
        features = self._features(timestep).to(dtype)
        time = self.time_embedding(features, None if condition is None else condition.to(dtype))
        if class_labels is not None or self.class_embedding is not None:
            time = time + self._class(dtype, class_labels)
        if config.addition_embed_type is not None:
            time = time + self._additions(dtype, text_embeds, time_ids)
        return time if self.time_act is None else self.time_act(time)

    def _class(self, dtype: torch.dtype, labels: Tensor | None) -> Tensor:
        """Embed classes (B,), to be added to the time embedding (Nichol & Dhariwal 2021, arXiv:2102.09672)."""
        part, embedding = self.config.part, self.class_embedding
        if embedding is None:
            hint = "the config has neither num_class_embeds nor class_embed_type"
            raise LdmrtError(part, "unexpected class_labels", hint=hint)
        if labels is None:
            name = "num_class_embeds" if isinstance(embedding, nn.Embedding) else f"class_embed_type {CLASSES[1]}"
            raise LdmrtError(part, "class_labels is missing", hint=f"{name} needs it")
        if isinstance(embedding, TimestepEmbedding):
            return embedding(self._features(labels).to(dtype))
        if labels.dtype not in WHOLE:
            raise LdmrtError(part, "class_labels holds no whole numbers", expected="int64", found=labels.dtype)
        return embedding(labels).to(dtype)

    def _additions(self, dtype: torch.dtype, text_embeds: Tensor | None, time_ids: Tensor | None) -> Tensor:
        """Embed SDXL's pooled text and sizes, to be added to the time embedding (Podell et al. 2023, section 2.2)."""
        config = self.config
        if text_embeds is None or time_ids is None:
            missing = "text_embeds" if text_embeds is None else "time_ids"
            raise LdmrtError(config.part, f"{missing} is missing", hint=f"addition_embed_type {ADDITIONS[1]} needs it")
        sizes = self._sinusoids(time_ids.flatten(), config.addition_time_embed_dim or 0)
        sizes = sizes.unflatten(0, (-1, time_ids.shape[1])).flatten(1)
        added = torch.cat([text_embeds.to(dtype), sizes.to(dtype)], dim=-1)
        if added.shape[1] != config.projection_class_embeddings_input_dim:
            expected = f"{config.projection_class_embeddings_input_dim} values of projection_class_embeddings_input_dim"
            found = f"{text_embeds.shape[1]} of text_embeds and {sizes.shape[1]} of time_ids"
            raise LdmrtError(config.part, "text_embeds and time_ids do not fit", expected=expected, found=found)
        return self.add_embedding(added)

    def down(
        self, x: Tensor, time: Tensor, context: Context | None, added: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the down blocks.

        Args:
            x: Features (B, width, h, w), of `conv_in`.
            time: The time embedding.
            context: Prompt embeddings (B, M, cross_attention_dim), or None for a network that reads no context.
            added: A T2I-Adapter's residuals, one a level; further ones are for the middle.

        Returns:
            The last features, and all skips in the order of `skip_channels`.
        """
        skips = [x]
        for i, level in enumerate(levels(self.down_blocks)):
            extra = added[i] if i < len(added) else None
            for j, resnet in enumerate(level.resnets):
                x = resnet(x, time)
                if level.attentions is not None:
                    x = level.attentions[j](x, context)
                    if extra is not None and j == len(level.resnets) - 1:
                        x = x + extra
                skips.append(x)
            if level.downsamplers is not None:
                x = level.downsamplers[0](x, time)
                skips.append(x)
            if extra is not None and level.attentions is None:
                x = skips[-1] = x + extra  # the skip too: diffusers adds in place
        return x, skips

    def middle(self, x: Tensor, time: Tensor, context: Context | None, added: Sequence[Tensor] = ()) -> Tensor:
        """Run the middle on x (B, C, h, w), and add the residual that a T2I-Adapter has for it, if any."""
        if self.mid_block is None:
            return x
        for i, resnet in enumerate(self.mid_block.resnets):
            if i and self.mid_block.attentions is not None:
                x = self.mid_block.attentions[i - 1](x, context)
            x = resnet(x, time)
        beyond = added[len(self.down_blocks) :]
        # diffusers ignores a residual of another shape
        return x + beyond[0] if beyond and beyond[0].shape == x.shape else x

    def _features(self, t: Tensor) -> Tensor:
        """Compute the features of times (B,), float32, of which they are embedded."""
        if self.time_proj is not None:
            return self.time_proj(t)
        return self._sinusoids(t, self.config.block_out_channels[0])

    def _sinusoids(self, t: Tensor, channels: int) -> Tensor:
        """Compute the sinusoidal features of numbers (N,) as the config orders them: (N, channels)."""
        return sinusoids(t, channels, flip_sin_to_cos=self.config.flip_sin_to_cos, freq_shift=self.config.freq_shift)


def levels(blocks: nn.ModuleList) -> list[Level]:
    """Return the levels in a list of modules, typed as such."""
    return cast(list[Level], list(blocks))
