"""What a user asks for, checked once at the door."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import LdmrtError

Text = str | Sequence[str]


@dataclass(frozen=True)
class Request:
    """One call of the pipeline: `count` pictures of each prompt.

    `seed` is the first picture's, the next ones count up; or a sequence with one a picture. `guidance` 1 or less is
    none; `guidance_rescale` takes back its excess of contrast, 0 to 1; `guidance_interval` (low, high) keeps it to rows
    of a noise level sigma / alpha above low and up to high. With `deep_cache` n the U-Net's deep layers run at every
    n-th of the sampler's times, and the others take what they said there. `width` and `height` are pixels: the
    picture's where one is given, else the model's own. `scheduler` is an everyday name, the bundle's own where left
    out; `scheduler_settings` are keys of its config that are to be others, such as timestep_spacing. `latents` are
    unit noise (pictures, C, height/f, width/f) in place of the seeds'.

    `image` is a picture to start from (PIL, a path, or an array) and `strength` how much of the way to noise; `mask`
    is white where it shall change. `controls` maps the name of a ControlNet or
    an adapter to its picture, or to (picture, scale).

    SDXL reads a second prompt, and sizes: `original_size` and `target_size` (height, width), the size of the picture
    where left out, `crop` (top, left); its refiner the two aesthetic scores.
    """

    prompt: Text
    negative_prompt: Text | None = None
    prompt_2: Text | None = None
    negative_prompt_2: Text | None = None
    count: int = 1
    steps: int = 20
    guidance: float = 5.0
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    deep_cache: int | None = None
    seed: int | Sequence[int] = 0
    width: int | None = None
    height: int | None = None
    scheduler: str | None = None
    scheduler_settings: Mapping[str, Any] = field(default_factory=dict, compare=False)
    eta: float | None = None
    clip_skip: int = 0
    image: Any = field(default=None, repr=False, compare=False)
    strength: float = 0.8
    mask: Any = field(default=None, repr=False, compare=False)
    controls: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5
    latents: NDArray[Any] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2"):
            given = getattr(self, name)
            if given is None and name != "prompt":
                continue
            texts = [given] if isinstance(given, str) else given
            if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
                raise LdmrtError("request", f"impossible {name}", expected="text, or a list of texts", found=given)
        _whole("count", self.count, least=1)
        _whole("number of steps", self.steps, least=1)
        _whole("clip_skip", self.clip_skip, least=0)
        for name in ("width", "height"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name))
        _number("guidance", self.guidance)
        _number("guidance_rescale", self.guidance_rescale, 0, 1)
        ends = self.guidance_interval
        if ends is not None and not (len(ends) == 2 and 0 <= ends[0] < ends[1] < math.inf):
            expected = "two noise levels, low and high"
            raise LdmrtError("request", "impossible guidance_interval", expected=expected, found=ends)
        if self.deep_cache is not None:
            _whole("deep_cache", self.deep_cache, least=1)
        if self.full_every > 1 and self.controls:
            raise LdmrtError("request", "a deep cache beside controls, which steer every row", expected="one of them")
        if not isinstance(self.scheduler_settings, Mapping):
            expected, found = "keys of a scheduler's config, with values", self.scheduler_settings
            raise LdmrtError("request", "impossible scheduler_settings", expected=expected, found=found)
        _number("strength", self.strength, 0, 1)
        for name in ("original_size", "crop", "target_size"):
            pair = getattr(self, name)
            if pair is not None and (len(pair) != 2 or not all(isinstance(side, Integral) for side in pair)):
                raise LdmrtError("request", f"impossible {name}", expected="two whole numbers", found=pair)
        if self.mask is not None and self.image is None:
            raise LdmrtError("request", "a mask without a picture", expected="image, which the mask is for")
        if not self.prompts:
            raise LdmrtError("request", "no prompt")
        pictures = len(self.prompts)
        for name in ("negative_prompt", "prompt_2", "negative_prompt_2"):
            texts = self._each(getattr(self, name), pictures)
            if len(texts) != pictures:
                problem = f"as many {name.replace('_', ' ')}s as pictures"
                raise LdmrtError("request", problem, expected=pictures, found=len(texts))
        if len(self.seeds) != pictures:
            raise LdmrtError("request", "one seed a picture", expected=pictures, found=len(self.seeds))
        for seed in self.seeds:
            if not 0 <= seed < 2**64:
                raise LdmrtError("request", "impossible seed", expected="0 to 2**64 - 1", found=seed)

    @property
    def full_every(self) -> int:
        """After how many of the sampler's times all of the U-Net runs again; 1 is at each."""
        return self.deep_cache or 1

    @property
    def prompts(self) -> list[str]:
        """One a picture."""
        texts = [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)
        return [text for text in texts for _ in range(self.count)]

    @property
    def texts(self) -> list[tuple[str, str]]:
        """The prompts for the first and the second text encoder, one pair a picture."""
        second = self._each(self.prompt_2, len(self.prompts))
        return [(one, other or one) for one, other in zip(self.prompts, second, strict=True)]

    def negative_texts(self, *, zeros: bool) -> list[tuple[str | None, str | None]]:
        """The same of the negative prompts. With `zeros` a negative prompt that is left out is None, not ""."""
        first = self._each(self.negative_prompt, len(self.prompts))
        second = self._each(self.negative_prompt_2, len(self.prompts))
        if zeros and self.negative_prompt is None:
            return [(None, None)] * len(first)
        return [(one or "", other or one or "") for one, other in zip(first, second, strict=True)]

    @property
    def seeds(self) -> list[int]:
        """One a picture."""
        if isinstance(self.seed, (Sequence, np.ndarray)):
            return [_whole("seed", seed) for seed in self.seed]
        return [_whole("seed", self.seed) + i for i in range(len(self.prompts))]

    def parts(self, batch: int) -> list["Request"]:
        """This request as several, of `batch` pictures each and the rest: the same pictures, not all at once."""
        _whole("batch", batch, least=1)
        many, found = len(self.prompts), []
        for first in range(0, many, batch):
            mine = slice(first, first + batch)
            texts: dict[str, Any] = {"prompt": self.prompts[mine]}
            for name in ("negative_prompt", "prompt_2", "negative_prompt_2"):
                text = getattr(self, name)
                texts[name] = text if text is None else self._each(text, many)[mine]
            latents = self.latents if self.latents is None else self.latents[mine]
            found.append(replace(self, count=1, seed=self.seeds[mine], latents=latents, **texts))
        return found

    def _each(self, text: Text | None, pictures: int) -> list[Any]:
        if text is None or isinstance(text, str):
            return [text] * pictures
        return [one for one in text for _ in range(self.count)]

    def size(self, own: tuple[int, int], factor: int) -> tuple[int, int]:
        """(height, width) in pixels, of a model or picture of the size `own` and `factor` pixels a latent."""
        sides = []
        for name, given, default in (("height", self.height, own[0]), ("width", self.width, own[1])):
            pixels = default if given is None else given
            if pixels < factor or pixels % factor:
                raise LdmrtError("request", f"impossible {name}", expected=f"a multiple of {factor}", found=pixels)
            sides.append(pixels)
        return sides[0], sides[1]


def _number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> None:
    """An `LdmrtError` where `value` is no finite number from `least` to `most`."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or not least <= number <= most:
        expected = f"{least:g} to {most:g}" if math.isfinite(most) else "a number"
        raise LdmrtError("request", f"impossible {name}", expected=expected, found=value)


def _whole(name: str, value: object, *, least: int | None = None) -> int:
    """A whole number, of at least `least`, or an `LdmrtError`."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise LdmrtError("request", f"impossible {name}", expected="a whole number", found=value)
    if least is not None and int(value) < least:
        raise LdmrtError("request", f"impossible {name}", expected=f"at least {least}", found=value)
    return int(value)
