"""Make the inputs of a network at every row of its sampler, and the guidance that weighs its calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.pipeline.prompts.syntaxes import PLAIN
from ldmrt.runtime.samplers.guidance import Guidance, guide
from ldmrt.runtime.samplers.plan import Plan
from ldmrt.runtime.tensors import Array

from .context import Context
from .sources import condition


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


def guided_inputs(
    context: Context, scales: Sequence[float], usual: Sequence[float], plan: Plan, calls: int
) -> GuidedInputs:
    """Make the inputs of a request.

    Args:
        context: The request and its stage.
        scales: The scales of all rows of guidance.
        usual: Those without the row that skips layers.
        plan: The sampler's table. Its rows count from 0 but where they go on with another model's latents.
        calls: How many rows a step of the sampler has.
    """
    request = context.request
    if request.prompt_syntax == PLAIN:
        guidance, own = (guide(request.total_images, each, request.guidance_rescale) for each in (scales, usual))
        return GuidedInputs(guidance, own, guide(request.total_images, ()), (condition(context),), (0,) * plan.rows)
    from .composed import composed_inputs  # parsers that are made where a syntax asks for them

    return composed_inputs(context, scales, usual, plan, calls)
