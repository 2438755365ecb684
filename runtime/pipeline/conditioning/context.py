"""Hold what the inputs of a network are made of, and refuse a request that lacks a part of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ldmrt.runtime.backends.lazy_engines import LazyEngines
from ldmrt.runtime.bundle.stages import Row, Source, Stage
from ldmrt.runtime.errors import BundleError, InvalidRequest
from ldmrt.runtime.pipeline.autoencoder.decode import Decoding
from ldmrt.runtime.pipeline.request.images import GivenImages
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.config import Config
from ldmrt.runtime.samplers.noise.sources import NoiseSource
from ldmrt.runtime.samplers.plan import Latents
from ldmrt.runtime.tensors import Array
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from .prompts import Conditioning, Side, encode_sides

NOISE_LEVEL = 20  # by default, as in diffusers' StableDiffusionUpscalePipeline


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
        noise: Draws for every image.
    """

    request: Request
    stage: Stage
    rows: tuple[Row, ...]
    given: GivenImages
    engines: LazyEngines
    tokenizers: Mapping[str, Tokenizer]
    schedulers: Mapping[str, Config] = field(default_factory=dict)
    how: Decoding = field(default_factory=Decoding)
    noise: NoiseSource = field(kw_only=True, repr=False)

    @cached_property
    def prompts(self) -> Conditioning:
        """The embeddings of the prompts of all rows, encoded at once."""
        source = self.stage.prompt or Source("prompt")
        zeros = bool(source.settings.get("zeros"))
        sides = [Side.of(self.request, row, zeros=zeros) for row in self.rows]
        return encode_sides(sides, self.engines, self.tokenizers, source)

    @property
    def colours(self) -> Latents:
        """The request's image for each image that is made, (images, 3, H, W), values in [0, 1]."""
        if self.given.colours is None:
            raise InvalidRequest("request", "this model is given an image", expected="image")
        return self.given.colours

    @property
    def mask(self) -> Latents:
        """The mask of each image, (images, 1, H, W), 1 where it shall change."""
        if self.given.mask is None:
            raise InvalidRequest("unet", "this model fills a part of an image", expected="image and mask_image")
        return self.given.mask

    @property
    def guidance_scale(self) -> float:
        """The request's guidance scale, or the stage's own."""
        return self.request.guidance(self.stage.guidance_scale)

    @property
    def noise_level(self) -> int:
        """The timestep whose noise is added to the image."""
        level = NOISE_LEVEL if self.request.noise_level is None else self.request.noise_level
        if level > (most := self.stage.max_noise_level):
            raise InvalidRequest("request", "invalid noise_level", expected=f"0 to {most}", found=level)
        return level

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
