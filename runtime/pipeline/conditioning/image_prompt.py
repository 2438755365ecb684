"""Encode the image of an IP-Adapter for the cross-attention of the U-Net (Ye et al. 2023, arXiv:2308.06721)."""

import numpy as np

from ldmrt.runtime.bundle.graphs import IMAGE_ENCODER, IMAGE_PROJECTION
from ldmrt.runtime.bundle.stages import IMAGE_PROMPT, IMAGE_SCALE, Source, Stage
from ldmrt.runtime.errors import BundleError, InvalidRequest
from ldmrt.runtime.images.clip import clip_pixels, width_of
from ldmrt.runtime.images.reading import for_each, split
from ldmrt.runtime.pipeline.request.block_scales import scale_of_each
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.tensors import Array, Engine

from .context import Context

FIELDS = ("ip_adapter_image", "ip_adapter_scale")


def blocks_of(stage: Stage) -> tuple[str, ...]:
    """Return the transformers whose scales a stage is told; none without an image prompt."""
    source = stage.source(IMAGE_SCALE)
    return () if source is None else tuple(str(source.setting("blocks")).split(","))


def check_image_prompt(request: Request, stage: Stage) -> None:
    """Refuse an image of an IP-Adapter, or its scale, where there is no such adapter or no such block.

    Raises:
        InvalidRequest: Names the field.
    """
    if stage.source(IMAGE_PROMPT) is not None:
        scale_of_each(FIELDS[1], request.ip_adapter_scale, blocks_of(stage))
    elif request.ip_adapter_image is not None:
        problem, hint = f"this model takes no {FIELDS[0]}", "ldmrt export CHECKPOINT BUNDLE --ip-adapter FILE"
        raise InvalidRequest("request", problem, expected=f"a request without {FIELDS[0]}", hint=hint)


def image_tokens(context: Context, source: Source, name: str) -> Array:
    """Return the tokens of the image for rows that see the prompt, and those of none for the others.

    Without an image all are zeros, which a scale of 0 leaves out; nothing is encoded then.
    """
    images, calls = context.request.total_images, context.request.total_images * len(context.rows)
    if context.request.ip_adapter_image is None:
        return np.zeros((calls, *_shape(context, name)), np.float32)
    encoder, projection = (_engine(context, each) for each in (IMAGE_ENCODER, IMAGE_PROJECTION))
    images_given = split(FIELDS[0], context.request.ip_adapter_image)
    pixels = clip_pixels(FIELDS[0], images_given, width_of(IMAGE_ENCODER, encoder))
    if guided := any(row.prompt != "positive" for row in context.rows):
        pixels = np.concatenate([pixels, np.zeros_like(pixels[:1])]) if source.setting("encoded") else pixels
    ((_, embeds),) = encoder(**{encoder.inputs[0].name: pixels}).items()
    if guided and not source.setting("encoded"):
        embeds = np.concatenate([embeds, np.zeros_like(embeds[:1])])
    ((_, tokens),) = projection(**{projection.inputs[0].name: embeds}).items()
    tokens = tokens.astype(np.float32, copy=False)
    shown, none = (tokens[:-1], tokens[-1:]) if guided else (tokens, tokens)
    each = {True: for_each(shown, images), False: for_each(none, images)}
    return np.concatenate([each[row.prompt == "positive"] for row in context.rows])


def image_scales(context: Context, source: Source, name: str) -> Array:
    """Return the scale of each transformer for each call, zeros without an image."""
    blocks = blocks_of(context.stage)
    given = context.request.ip_adapter_image is not None
    scales = scale_of_each(FIELDS[1], context.request.ip_adapter_scale if given else 0.0, blocks)
    return context.repeated(np.array([scales], np.float32))


def _engine(context: Context, name: str) -> Engine:
    if name not in context.engines:
        raise BundleError(name, "is missing", expected="a network of the bundle", hint="export again")
    return context.engines[name]


def _shape(context: Context, name: str) -> tuple[int, int]:
    """Return how many tokens the network reads of an image, and their width."""
    shapes = {spec.name: spec.shape for spec in context.engines[context.stage.network].inputs}
    _, count, width = shapes.get(name, (0, 0, 0))
    return int(count), int(width)
