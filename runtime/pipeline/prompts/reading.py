"""Hold what was read of a prompt: terms that are drawn together, of texts that follow one another."""

from dataclasses import dataclass
from typing import Generic, TypeVar

Text = TypeVar("Text", covariant=True)


@dataclass(frozen=True)
class Term(Generic[Text]):
    """One of the texts that an image is drawn of at once, and its weight.

    Attributes:
        weight: The weight of its prediction.
        texts: (last step, text) in the order of the steps.
    """

    weight: float
    texts: tuple[tuple[int, Text], ...]

    def at(self, step: int) -> Text:
        """Return the text at a step, which counts from 0: the first whose last step is not below it."""
        return next((text for last, text in self.texts if step <= last), self.texts[0][1])
