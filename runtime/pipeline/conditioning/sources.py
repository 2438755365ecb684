"""Make the inputs of a network from their sources, by a table with one function for each kind.

A new kind of conditioning is a line here, and one in `KINDS` of `bundle/stages.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.bundle.stages import Row, Source, Stage
from ldmrt.runtime.errors import BundleError, InvalidRequest, LdmrtError
from ldmrt.runtime.pipeline.autoencoder.decode import Decoding
from ldmrt.runtime.pipeline.request.images import GivenImages
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.config import Config
from ldmrt.runtime.tensors import Array, Arrays
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from .beside import BESIDE, ImageSources, noise_level
from .prompts import Conditioning, Side, encode_sides
from .sizes import guidance_embedding, time_ids

BESIDE_STATE = "beside"  # the channels that the network sees beside the state, which are no input of their own


@dataclass(frozen=True)
class Context:
    """Holds all that sources are made of: a request, its images, and the networks of its stage.

    Attributes:
        request: The request.
        stage: The stage that it runs.
        rows: Rows of guidance: those of the stage, or the last one alone.
        given: The request's images.
        engines: Those of the pipeline; a text encoder or the encoder is opened where it is needed.
        tokenizers: By name: "tokenizer" and "tokenizer_2".
        schedulers: Configs of the schedulers that add noise to images, by their folders.
        how: Whole images or tiles.
    """

    request: Request
    stage: Stage
    rows: tuple[Row, ...]
    given: GivenImages
    engines: LazyEngines
    tokenizers: Mapping[str, Tokenizer]
    schedulers: Mapping[str, Config] = field(default_factory=dict)
    how: Decoding = field(default_factory=Decoding)

    @cached_property
    def prompts(self) -> Conditioning:
        """The embeddings of the prompts of all rows, encoded at once."""
        sources = [source for kind in ("prompt", "pooled_prompt") if (source := self.stage.source(kind))]
        zeros = any(source.setting("zeros") for source in sources)
        sides = [Side.of(self.request, row, zeros=zeros) for row in self.rows]
        return encode_sides(sides, self.engines, self.tokenizers, xl=bool(sources[0].settings.get("penultimate")))

    @property
    def images(self) -> ImageSources:
        """What sources that are images are made of."""
        return ImageSources(self.request, self.stage, self.given, self.engines, self.schedulers, self.how)

    def width(self, name: str) -> int:
        """Return the last size of an input of the network.

        Raises:
            BundleError: The network has no such input, or it states no such size.
        """
        shapes = {spec.name: spec.shape for spec in self.engines[self.stage.network].inputs}
        shape = shapes.get(name, ())
        size = shape[-1] if shape else None
        if not isinstance(size, int):
            found = f"{name} {shape}" if name in shapes else ", ".join(shapes)
            raise BundleError(self.stage.network, f"no input {name} of a fixed width", found=found, hint="export again")
        return size

    def repeated(self, array: Array) -> Array:
        """Repeat an array of one image, (1, ...), or of all, (images, ...), for every call of the network."""
        images = self.request.total_images
        return np.concatenate([array.repeat(images // len(array), axis=0)] * len(self.rows))


def condition(context: Context) -> Arrays:
    """Make the inputs of a network that do not change from row to row of its sampler.

    Args:
        context: The request and its stage.

    Returns:
        By name an array with one row for each call of the network: blocks of one row of guidance for every image.
        `BESIDE_STATE` are channels, (calls, C, h, w), that stand beside the state.

    Raises:
        InvalidRequest: The request lacks what a source needs, or has what no source takes.
    """
    _refuse_unused(context.request, context.stage)
    inputs: Arrays = {}
    for name, (source, *_) in context.stage.reads.items():
        if source.kind in SOURCES:
            inputs[name] = SOURCES[source.kind](context, source, name)
    if beside := context.stage.beside:
        channels = [(source.kind, BESIDE[source.kind](context.images, source)) for source in beside]
        rows = [
            np.concatenate([np.zeros_like(array) if kind in row.blank else array for kind, array in channels], axis=1)
            for row in context.rows
        ]
        inputs[BESIDE_STATE] = np.concatenate(rows)
    return inputs


def _prompt(context: Context, source: Source, name: str) -> Array:
    return context.prompts.context


def _pooled_prompt(context: Context, source: Source, name: str) -> Array:
    pooled = context.prompts.pooled
    if pooled is None:
        raise LdmrtError("text_encoder", "no encoder gives text_embeds, which this U-Net asks for", hint="export again")
    return pooled


def _sizes(context: Context, source: Source, name: str) -> Array:
    scored, width = bool(source.setting("scored")), context.width(name)
    negative, positive = time_ids(
        context.request, context.request.total_images, context.given.size, width, scored=scored
    )
    return np.concatenate([positive if row.prompt == "positive" else negative for row in context.rows])


def _guidance_scale(context: Context, source: Source, name: str) -> Array:
    return context.repeated(guidance_embedding(context.request.guidance_scale, context.width(name)))


def _class(context: Context, source: Source, name: str) -> Array:
    count, labels = source.setting("count"), context.request.class_of_each
    if labels is None:
        raise InvalidRequest("request", "this model draws classes", expected=f"class_labels, 0 to {int(count) - 1}")
    if outside := [label for label in labels if not 0 <= label < int(count)]:
        raise InvalidRequest("request", "invalid class_labels", expected=f"0 to {int(count) - 1}", found=outside[0])
    return context.repeated(np.array(labels, np.int64))


def _noise_level(context: Context, source: Source, name: str) -> Array:
    return context.repeated(np.array([noise_level(context.request, source)], np.int64))


SOURCES: Mapping[str, Callable[[Context, Source, str], Array]] = {
    "prompt": _prompt,
    "pooled_prompt": _pooled_prompt,
    "sizes": _sizes,
    "guidance_scale": _guidance_scale,
    "class": _class,
    "noise_level": _noise_level,
}


def _refuse_unused(request: Request, stage: Stage) -> None:
    """Refuse fields that no source of the stage takes: they would have no effect."""
    fields = {"class_labels": ("class",), "noise_level": ("noise_level",), "image_guidance_scale": ()}
    for name, kinds in fields.items():
        taken = name in stage.guide.scales or any(stage.source(kind) for kind in kinds)
        if getattr(request, name) is not None and not taken:
            raise InvalidRequest("request", f"this model takes no {name}", expected=f"a request without {name}")
