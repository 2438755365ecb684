"""Hold what prompts of every syntax are made of, and refuse what cannot be read."""

import math
from dataclasses import dataclass

from ldmrt.runtime.errors import InvalidRequest, Place

DEEPEST = 50  # brackets within brackets


@dataclass(frozen=True)
class Fragment:
    """A piece of a text whose tokens have one weight."""

    text: str
    weight: float = 1.0


Fragments = tuple[Fragment, ...]


def unreadable(
    text: str, at: int, problem: str, expected: str | None = None, hint: str | None = None
) -> InvalidRequest:
    """Make the error of a prompt that cannot be read, with a caret under the place.

    Args:
        text: The whole prompt.
        at: The index of the character that the error is about.
        problem: What is wrong.
        expected: What was expected there.
        hint: What to do instead.
    """
    return InvalidRequest("prompt", problem, expected=expected, hint=hint, place=Place(text, at))


def weight_of(text: str, word: str, at: int) -> float:
    """Return a weight as a finite number.

    Args:
        text: The whole prompt.
        word: The weight as it is written.
        at: The index of its first character.

    Raises:
        InvalidRequest: It is no finite number.
    """
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise unreadable(text, at, f"{word!r:.40} is no weight", expected="a number, such as (word:1.3)")
    return number
