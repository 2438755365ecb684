"""State what a network is given at every row of its sampler, and the guidance that weighs its calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.samplers.guidance import Guidance
from ldmrt.runtime.tensors import Array


@dataclass(frozen=True)
class GuidedInputs:
    """What the network is given at every row, and how its calls are weighed.

    Attributes:
        guidance: All calls, and how they are weighed.
        usual: The same without the row that skips layers, which runs at some steps alone.
        alone: The same without guidance.
        variants: The inputs that do not change from row to row, see `condition`: one for each text of a schedule.
        of_row: The variant of each row of the plan.
        tokens: How many tokens of the prompt each call sees, (calls,); None where all see as many.
    """

    guidance: Guidance
    usual: Guidance
    alone: Guidance
    variants: tuple[Mapping[str, Array], ...] = field(repr=False)
    of_row: Sequence[int] = ()
    tokens: NDArray[np.int64] | None = None
