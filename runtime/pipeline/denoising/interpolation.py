"""Draw between two requests: prompt embeddings are interpolated linearly, noise by slerp.

At a request's own place nothing is mixed, so that its image is the one that it gives alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.pipeline.conditioning.guided import GuidedInputs
from ldmrt.runtime.pipeline.loras.asked import tags_of
from ldmrt.runtime.pipeline.request.fields import Fields
from ldmrt.runtime.pipeline.request.request import EMBEDDINGS, TEXTS, Request
from ldmrt.runtime.pipeline.request.second_pass import Pass
from ldmrt.runtime.samplers.noise.sources import Drawn, NoiseSource, Shape
from ldmrt.runtime.samplers.noise.variation import slerp, written
from ldmrt.runtime.tensors import Array

from .denoise import Encoded

IN_ALL = ("image", "image_latents", "ip_adapter_image")  # nothing is between an image and none
MAY_DIFFER = {
    *TEXTS, *EMBEDDINGS, *IN_ALL, "seed", "variation_seed", "generator", "class_labels", "latents", "controls", "loras",
}  # fmt: skip
SAME_IN_ALL = tuple(each.name for each in fields(Fields) if each.name not in MAY_DIFFER)


@dataclass(frozen=True)
class TurnedNoise:
    """Draws noise between that of two sources, in every stream.

    Attributes:
        low: The source at a share of 0.
        high: The source at a share of 1.
        share: The way from one to the other, 0 to 1.
    """

    low: NoiseSource
    high: NoiseSource
    share: float

    def __call__(self, stream: int, shape: Shape, into: Drawn | None = None) -> Drawn:
        """Draw the noise of a stream, (images, *shape), float32."""
        return written(slerp(self.share, self.low(stream, shape), self.high(stream, shape)), into)


def check_keys(requests: Sequence[Request], frames: int, start: int = 0) -> None:
    """Refuse requests that nothing can be drawn between, and a first frame `start` that is none of `frames`.

    Raises:
        InvalidRequest: There are fewer than two, or fewer frames; or one has a mask, a second pass, several images, or
            other LoRAs or settings than the first; or `start` is no frame.
    """
    if len(requests) < 2:
        expected = "two prompts, or one prompt and two seeds"
        raise InvalidRequest("interpolate", "nothing to interpolate between", expected=expected, found=len(requests))
    if frames < len(requests):
        expected = f"at least {len(requests)}, one for each prompt"
        raise InvalidRequest("interpolate", "too few frames", expected=expected, found=frames)
    if type(start) is not int or not 0 <= start < frames:
        raise InvalidRequest(
            "interpolate", "start is not one of the frames", expected=f"0 to {frames - 1}", found=start
        )
    for request in requests:
        if request.total_images != 1:
            found = request.total_images
            raise InvalidRequest("interpolate", "a request of several images", expected="one image", found=found)
        if request.hires is not None or request.has_mask:
            problem = "hires, a mask and outpaint cannot be interpolated"
            raise InvalidRequest("interpolate", problem, expected="a request without them")
        if (request.loras, tags_of(request)) != (requests[0].loras, tags_of(requests[0])):
            problem = "prompts with different LoRAs cannot be interpolated"
            raise InvalidRequest("interpolate", problem, expected="the same LoRAs and weights in all")
        for name in _different(requests[0], request):
            problem = "requests with different settings cannot be interpolated"
            raise InvalidRequest("interpolate", problem, expected=f"the same {name} in all")


def _different(one: Request, other: Request) -> Iterator[str]:
    """Yield the fields that differ between two requests, of those that have nothing in between."""
    yield from (name for name in SAME_IN_ALL if getattr(one, name) != getattr(other, name))
    yield from (name for name in IN_ALL if (getattr(one, name) is None) != (getattr(other, name) is None))
    if one.controls.keys() != other.controls.keys():
        yield "controls"


def only_pass(passes: Sequence[tuple[object, Pass]]) -> Request:
    """Return the request of the one stage and pass that runs.

    Raises:
        InvalidRequest: There are several, as those of a cascade, or a later one alone.
    """
    if len(passes) > 1 or passes[0][1].request.from_stage is not None:
        problem = "several stages cannot be interpolated"
        raise InvalidRequest("interpolate", problem, expected="a model of one stage, or until_stage of its first")
    return passes[0][1].request


def between(keys: Sequence[Encoded], place: float) -> Encoded:
    """Return the request at a place.

    Args:
        keys: Requests after the encoders, of the same settings.
        place: From 0, which is the first one, to len(keys) - 1, which is the last.

    Raises:
        InvalidRequest: Two prompts are read in different numbers of parts or chunks, or images have different sizes.
    """
    low = min(int(place), len(keys) - 1)
    share = place - low
    if not share:
        return keys[low]
    one, other = keys[low], keys[low + 1]
    nearest = one if share < 0.5 else other
    if one.size != other.size:
        (height, width), (high, wide) = one.size, other.size
        problem = "images of different sizes cannot be interpolated"
        raise InvalidRequest("interpolate", problem, expected=f"{width}x{height}", found=f"{wide}x{high}")
    noise, x, init = one.noise, one.initial.x, one.initial.init
    if one.request.seeds != other.request.seeds:
        noise = TurnedNoise(one.noise, other.noise, share)
    if not np.array_equal(x, other.initial.x):
        x = slerp(share, x, other.initial.x)
    if init is not None and other.initial.init is not None:
        init = init + np.float32(share) * (other.initial.init - init)
    initial = replace(one.initial, x=x, init=init)
    return replace(nearest, initial=initial, noise=noise, inputs=_mixed(one.inputs, other.inputs, share))


def _mixed(one: GuidedInputs, other: GuidedInputs, share: float) -> GuidedInputs:
    """Return the inputs of the network between those of two requests."""
    pairs = list(zip(one.variants, other.variants, strict=False))
    same = len(one.variants) == len(other.variants) == 1 and np.array_equal(one.guidance.idx, other.guidance.idx)
    same = same and all(a.keys() == b.keys() and all(a[name].shape == b[name].shape for name in a) for a, b in pairs)
    tokens = [None if each.tokens is None else each.tokens.tolist() for each in (one, other)]
    if not same or tokens[0] != tokens[1]:
        problem = "two prompts are read in different numbers of parts or chunks"
        expected = "prompts of one kind, without schedules"
        raise InvalidRequest("interpolate", problem, expected=expected)
    return replace(one, variants=tuple(_arrays(a, b, share) for a, b in pairs))


def _arrays(one: Mapping[str, Array], other: Mapping[str, Array], share: float) -> dict[str, Array]:
    return {name: _array(name, array, other[name], share) for name, array in one.items()}


def _array(name: str, one: Array, other: Array, share: float) -> Array:
    """Mix two inputs: a mask sees the tokens that either sees, other whole numbers are the nearer ones."""
    if "mask" in name:
        return np.maximum(one, other)
    if one.dtype.kind != "f":
        return one if share < 0.5 else other
    mixed: Array = one + one.dtype.type(share) * (other - one)
    return mixed
