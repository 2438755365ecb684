"""Scale the loss of a training in float16, whose smallest gradients would be zero (Micikevicius et al. 2018).

Mixed Precision Training, arXiv:1710.03740, section 3.2.
"""

from dataclasses import dataclass, replace

GROWS = 2000  # steps in a row without an overflow, after which the scale is doubled, as in torch's GradScaler
MOST = 20  # steps in a row with one, after which the run stops


@dataclass(frozen=True)
class LossScale:
    """States by what the loss is multiplied, and counts the steps that were skipped.

    Attributes:
        scale: A power of two, so that the gradient is divided by it without rounding.
        clean: Steps since the scale changed.
        skipped: Steps of the run whose gradient was not finite; they changed no weight.
        in_a_row: How many of them were the last ones.
    """

    scale: float = 2.0**16
    clean: int = 0
    skipped: int = 0
    in_a_row: int = 0

    @property
    def hopeless(self) -> bool:
        """Whether so many steps in a row were skipped that no scale will help."""
        return self.in_a_row >= MOST

    def after(self, *, taken: bool) -> "LossScale":
        """Return the scale after a step that was taken, or skipped as its gradient was not finite."""
        if not taken:
            return LossScale(self.scale / 2, 0, self.skipped + 1, self.in_a_row + 1)
        if self.clean + 1 == GROWS:
            return replace(self, scale=2 * self.scale, clean=0, in_a_row=0)
        return replace(self, clean=self.clean + 1, in_a_row=0)
