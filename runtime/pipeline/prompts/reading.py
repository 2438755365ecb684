"""Hold what was read of a prompt: terms that are drawn together, of texts that follow one another in the steps."""

from dataclasses import dataclass
from typing import Generic, TypeVar

Text = TypeVar("Text", covariant=True)


@dataclass(frozen=True)
class Steps:
    """The steps of the pass that a schedule is read for.

    Attributes:
        count: How many the pass has.
        before: How many the pass before it has; 0 of a first pass.
    """

    count: int = 1
    before: int = 0

    def of(self, when: str) -> float:
        """Return the step of this pass that a schedule names, which is below 1 if it lies in the pass before.

        As in `get_learned_conditioning_prompt_schedules` of AUTOMATIC1111's modules/prompt_parser.py (1.10), steps are
        counted through both passes, 0.4 is a share of the first one and 1.4 of the second one.

        Args:
            when: A step, or with a point a share.
        """
        if "." in when:
            return (float(when) - (1.0 if self.before else 0.0)) * self.count
        return float(when) - self.before


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
