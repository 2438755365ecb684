"""Read a prompt of AUTOMATIC1111's syntax: its parts, each by ranges of steps, as fragments with weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ldmrt.runtime.errors import InvalidRequest, Place
from ldmrt.runtime.pipeline.prompts.fragments import Fragments, unreadable
from ldmrt.runtime.pipeline.prompts.reading import Steps, Term

from .attention import read_attention
from .composition import Part, split_composition
from .networks import place_in, split_networks
from .schedules import read_schedule

AROUND = 8  # characters of a scheduled text by which its place is found in the prompt
Read = TypeVar("Read")


@dataclass(frozen=True)
class Sections:
    """A text as fragments; between two sections stands a BREAK."""

    sections: tuple[Fragments, ...]


def read_a1111(prompt: str, steps: Steps, *, composed: bool) -> tuple[Term[Sections], ...]:
    """Read a prompt.

    Args:
        prompt: The prompt.
        steps: The steps of the pass that it is read for.
        composed: Whether AND splits it: not of a negative prompt, where it is a word.

    Returns:
        One term for each part between ANDs, with `Sections` for each range of steps.

    Raises:
        InvalidRequest: The prompt cannot be read; the error points at the place.
    """
    text, tags = split_networks(prompt)
    if tags and not composed:
        problem = "a negative prompt loads no LoRA"
        raise unreadable(prompt, tags[0].at, problem, expected="it in the prompt")
    try:
        parts = split_composition(text) if composed else (Part(text),)
        return tuple(Term(part.weight, _of_part(text, part, steps)) for part in parts)
    except InvalidRequest as error:
        if error.place is None or error.place.text != text:
            raise
        raise error.placed(Place(prompt, place_in(prompt, error.place.at))) from None


def _of_part(prompt: str, part: Part, steps: Steps) -> tuple[tuple[int, Sections], ...]:
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
