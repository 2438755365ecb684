"""Read a prompt by one of the syntaxes, as terms that are drawn together and texts that follow one another."""

from dataclasses import dataclass
from typing import Any

PLAIN, A1111, COMPEL = SYNTAXES = ("plain", "a1111", "compel")


@dataclass(frozen=True)
class Term:
    """One of the texts that an image is drawn of at once, and its weight.

    Attributes:
        weight: The weight of its prediction.
        texts: (last step, text) in the order of the steps.
    """

    weight: float
    texts: tuple[tuple[int, Any], ...]

    def at(self, step: int) -> Any:
        """Return the text at a step, which counts from 0: the first whose last step is not below it."""
        return next((text for last, text in self.texts if step <= last), self.texts[0][1])
