"""Read the prompts of a request by its syntax: which texts each call of the network is told at each step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.bundle.stages import Row, Stage
from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.pipeline.prompts.reading import Steps
from ldmrt.runtime.pipeline.prompts.syntaxes import PLAIN, Read, Terms, read_prompt
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.samplers.guidance import Guidance, compose, guide

GUIDED = ("guidance_scale",)  # the scales of a stage that is guided by its negative prompt alone
# One for each text encoder; None is the empty word that SDXL takes as zeros.
ReadTexts: TypeAlias = "tuple[Read | None, ...]"


@dataclass(frozen=True)
class Part:
    """What one call of the network is told: a term of the prompt for each text encoder."""

    terms: "tuple[Terms | None, ...]"
    number: int  # of the term
    skip: int  # last layers of CLIP

    def at(self, step: int) -> ReadTexts:
        """Return the texts at a step, which counts from 0."""
        return tuple(None if terms is None else terms[self.number].at(step) for terms in self.terms)


@dataclass(frozen=True)
class Composition:
    """The calls of the network for one step.

    Attributes:
        parts: What each call is told.
        image: The image of each call, (calls,).
        block: The place of each call in blocks of one row of guidance for every image, (calls,).
        weights: For each image the weights of its parts.
    """

    parts: tuple[Part, ...]
    image: NDArray[np.int64]
    block: NDArray[np.int64]
    weights: tuple[tuple[float, ...], ...]

    @property
    def is_plain(self) -> bool:
        """Whether each image has one part of weight 1, so that guidance is as without a syntax."""
        return all(weights == (1.0,) for weights in self.weights)

    def guidance(self, scales: Sequence[float], rescale: float = 0.0, most: float = 0.0) -> Guidance:
        """Weigh the calls: of parts, by the scale of classifier-free guidance, 1 where there is none."""
        if self.is_plain:
            return guide(len(self.weights), scales, rescale, most)
        return compose(self.weights, scales[0] if scales else 1.0)


def read_composition(request: Request, stage: Stage, rows: Sequence[Row], steps: Steps) -> Composition:
    """Read the prompts of all rows of guidance.

    Args:
        request: The request.
        stage: The stage that it runs.
        rows: The rows, with the negative prompt's where the prompt has several parts.
        steps: The steps of the pass that schedules are read for.

    Raises:
        InvalidRequest: A prompt cannot be read, or the model cannot draw several parts at once.
    """
    zeros = stage.prompt is not None and bool(stage.prompt.settings.get("zeros"))
    read = cache(lambda prompt, negative: read_prompt(request.prompt_syntax, prompt, steps, negative=negative))
    parts, images, blocks = list[Part](), list[int](), list[int]()
    weights: list[tuple[float, ...]] = [()] * request.total_images
    for number, row in enumerate(rows):
        positive = row.prompt == "positive"
        texts = request.texts if positive else request.negative_texts(zeros=zeros)
        for image, own in enumerate(texts):
            terms = tuple(None if text is None else read(text, not positive) for text in own)
            counts = {len(each) for each in terms if each is not None}
            if len(counts) > 1:
                problem = "prompts of the text encoders have different numbers of parts"
                raise InvalidRequest("request", problem, expected="as many AND in each")
            first = terms[0]
            if positive:
                weights[image] = tuple(term.weight for term in first or ())
            for part in range(len(first) if first is not None else 1):
                parts.append(Part(terms, part, (request.clip_skip if positive else request.negative_clip_skip) or 0))
                images.append(image)
                blocks.append(number * len(texts) + image)
    composition = Composition(tuple(parts), np.array(images), np.array(blocks), tuple(weights))
    if not composition.is_plain:
        if stage.guide.scales != GUIDED:
            raise InvalidRequest("request", "this model takes no AND", expected="one text for each prompt")
        for name in ("guidance_rescale", "cfg_normalization"):
            if getattr(request, name):
                problem = f"AND cannot be combined with {name}"
                raise InvalidRequest("request", problem, expected="only one of them")
    return composition


def most_parts(request: Request) -> int:
    """Return the largest number of parts of a prompt; 0 where every prompt is one part of weight 1."""
    if request.prompt_syntax == PLAIN or request.prompt is None:
        return 0
    each = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    terms = [read_prompt(request.prompt_syntax, text, Steps()) for text in each]
    composed = any(len(own) > 1 or own[0].weight != 1 for own in terms)
    return max(map(len, terms)) if composed else 0


def rows_of(request: Request, stage: Stage) -> tuple[tuple[Row, ...], list[float]]:
    """Return the rows of guidance that a request runs, and their scales: the last one alone without guidance."""
    scales = scales_of(request, stage)
    if scales and request.skip_guidance_layers is not None:
        scales = request.with_skipped(scales)
    return stage.guide.rows[-1 - len(scales) :], scales


def scales_of(request: Request, stage: Stage) -> list[float]:
    """Return the scales of the rows of guidance that run at every step."""
    scales = request.scales(stage.guide.scales, stage.guidance_scale)
    return scales if scales or not most_parts(request) else [1.0]  # AND reads the negative prompt at any scale
