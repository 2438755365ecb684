"""What a user asks for, checked once at the door."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import LdmrtError


@dataclass(frozen=True)
class Request:
    """One call of the pipeline: `count` pictures of each prompt.

    `seed` is the first picture's, the next ones count up; or a sequence with one a picture. `guidance` 1 is none;
    `guidance_rescale` takes back its excess of contrast, 0 to 1.
    `width` and `height` are pixels, the model's own size where left out. `scheduler` is an everyday name, the
    bundle's own where left out. `latents` are unit noise (pictures, C, height/f, width/f) in place of the seeds'.
    """

    prompt: str | Sequence[str]
    negative_prompt: str | Sequence[str] = ""
    count: int = 1
    steps: int = 20
    guidance: float = 5.0
    guidance_rescale: float = 0.0
    seed: int | Sequence[int] = 0
    width: int | None = None
    height: int | None = None
    scheduler: str | None = None
    eta: float | None = None
    latents: NDArray[Any] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            given = getattr(self, name)
            texts = [given] if isinstance(given, str) else given
            if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
                raise LdmrtError("request", f"impossible {name}", expected="text, or a list of texts", found=given)
        _whole("count", self.count, least=1)
        _whole("number of steps", self.steps, least=1)
        for name in ("width", "height"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name))
        if not isinstance(self.guidance, Real) or not np.isfinite(self.guidance):
            raise LdmrtError("request", "impossible guidance", expected="a number", found=self.guidance)
        if not isinstance(self.guidance_rescale, Real) or not 0 <= self.guidance_rescale <= 1:
            problem = "impossible guidance_rescale"
            raise LdmrtError("request", problem, expected="0 to 1", found=self.guidance_rescale)
        if not self.prompts:
            raise LdmrtError("request", "no prompt")
        pictures, negative = len(self.prompts), len(self.negative_prompts)
        if negative != pictures:
            raise LdmrtError("request", "as many negative prompts as pictures", expected=pictures, found=negative)
        if len(self.seeds) != pictures:
            raise LdmrtError("request", "one seed a picture", expected=pictures, found=len(self.seeds))
        for seed in self.seeds:
            if not 0 <= seed < 2**64:
                raise LdmrtError("request", "impossible seed", expected="0 to 2**64 - 1", found=seed)

    @property
    def prompts(self) -> list[str]:
        """One a picture."""
        return self._each(self.prompt)

    @property
    def negative_prompts(self) -> list[str]:
        """One a picture."""
        if isinstance(self.negative_prompt, str):
            return [self.negative_prompt] * len(self.prompts)
        return self._each(self.negative_prompt)

    @property
    def seeds(self) -> list[int]:
        """One a picture."""
        if isinstance(self.seed, (Sequence, np.ndarray)):
            return [_whole("seed", seed) for seed in self.seed]
        return [_whole("seed", self.seed) + i for i in range(len(self.prompts))]

    def _each(self, text: str | Sequence[str]) -> list[str]:
        texts = [text] if isinstance(text, str) else list(text)
        return [t for t in texts for _ in range(self.count)]

    def latent_size(self, size: int, factor: int) -> tuple[int, int]:
        """(height, width) of the latents, for a model of `size` pixels and `factor` pixels a latent."""
        sides = []
        for name, given in (("height", self.height), ("width", self.width)):
            pixels = size if given is None else given
            if pixels < factor or pixels % factor:
                raise LdmrtError("request", f"impossible {name}", expected=f"a multiple of {factor}", found=pixels)
            sides.append(pixels // factor)
        return sides[0], sides[1]


def _whole(name: str, value: object, *, least: int | None = None) -> int:
    """A whole number, of at least `least`, or an `LdmrtError`."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise LdmrtError("request", f"impossible {name}", expected="a whole number", found=value)
    if least is not None and int(value) < least:
        raise LdmrtError("request", f"impossible {name}", expected=f"at least {least}", found=value)
    return int(value)
