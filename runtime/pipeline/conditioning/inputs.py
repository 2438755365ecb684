"""Make the inputs of a network at every row of its sampler, and the guidance that weighs its calls."""

from collections.abc import Sequence

from ldmrt.runtime.pipeline.prompts.syntaxes import PLAIN
from ldmrt.runtime.samplers.guidance import guide
from ldmrt.runtime.samplers.plan import Plan

from .context import Context
from .guided import GuidedInputs
from .sources import condition


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
        changes = request.guidance_rescale, request.cfg_normalization
        guidance, own = (guide(request.total_images, each, *changes) for each in (scales, usual))
        return GuidedInputs(guidance, own, guide(request.total_images, ()), (condition(context),), (0,) * plan.rows)
    from .composed import composed_inputs  # parsers that are made where a syntax asks for them

    return composed_inputs(context, scales, usual, plan, calls)
