"""Read a prompt of AUTOMATIC1111's syntax: its parts, each by ranges of steps, as fragments with weights."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ldmrt.runtime.errors import InvalidRequest, Place
from ldmrt.runtime.pipeline.prompts.fragments import Fragments, unreadable
from ldmrt.runtime.pipeline.prompts.reading import Term

from .attention import read_attention
from .composition import Part, split_composition
from .schedules import read_schedule

NETWORK = re.compile(r"<(lora|lyco|hypernet):[^<>]*>")  # which no file is loaded for
AROUND = 8  # characters of a scheduled text by which its place is found in the prompt
Read = TypeVar("Read")


@dataclass(frozen=True)
class Sections:
    """A text as fragments; between two sections stands a BREAK."""

    sections: tuple[Fragments, ...]


def read_a1111(prompt: str, steps: int, *, composed: bool) -> tuple[Term[Sections], ...]:
    """Read a prompt.

    Args:
        prompt: The prompt.
        steps: The steps that its schedules are of.
        composed: Whether AND splits it: not of a negative prompt, where it is a word.

    Returns:
        One term for each part between ANDs, with `Sections` for each range of steps.

    Raises:
        InvalidRequest: The prompt cannot be read; the error points at the place.
    """
    if network := NETWORK.search(prompt):
        hint = "ldmrt export CHECKPOINT BUNDLE --lora FILE:SCALE"
        raise unreadable(prompt, network.start(), f"a prompt loads no {network[1]}", hint=hint)
    parts = split_composition(prompt) if composed else (Part(prompt),)
    return tuple(Term(part.weight, _of_part(prompt, part, steps)) for part in parts)


def _of_part(prompt: str, part: Part, steps: int) -> tuple[tuple[int, Sections], ...]:
    """Read the text of a part."""
    texts = _placed(prompt, part, partial(read_schedule, part.text, steps))
    return tuple((last, Sections(_placed(prompt, part, partial(read_attention, text)))) for last, text in texts)


def _placed(prompt: str, part: Part, read: Callable[[], Read]) -> Read:
    """Read a text, and let an error point into the prompt: at what stands there, if the text was scheduled."""
    try:
        return read()
    except InvalidRequest as error:
        place = error.place
        assert place is not None
        if place.text == part.text:
            raise error.placed(Place(prompt, part.at + place.at)) from None
        at = prompt.find(place.text[place.at : place.at + AROUND], part.at)
        if at < 0:
            raise
        raise error.placed(Place(prompt, at)) from None
