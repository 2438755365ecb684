"""Print the memory that a training will take."""

from typing import TYPE_CHECKING

from ldmrt.runtime.host import megabytes

from . import tables

if TYPE_CHECKING:
    from ldmrt.model.training.loop.memory import MemoryPlan
    from ldmrt.model.training.loop.settings import Settings

PEAK = "peak of a step"


def show_memory(plan: "MemoryPlan", settings: "Settings", processes: int) -> None:
    """Print a table of the memory, without what there is none of, and one of what other options save.

    Args:
        plan: The memory.
        settings: Those of the run.
        processes: How many share a batch; the plan is of the first.
    """
    rows = {
        "weights that learn": plan.weights,
        "frozen weights": plan.frozen,
        "gradients": plan.gradients,
        f"optimizer ({settings.optimizer})": plan.optimizer,
        f"averages ({len(settings.decays)})": plan.averages,
        "latents in memory": plan.latents,
        f"activations of {plan.samples} images": plan.activations,
        PEAK: plan.peak,
        "copies at a checkpoint, without previews": plan.saving,
    }
    title = f"memory on {settings.device}" + f", in the first of {processes} processes" * (processes > 1)
    cells = [(name, megabytes(size)) for name, size in rows.items() if size]
    tables.show((title, "memory"), cells, right=("memory",))
    others = [(options, megabytes(most), megabytes(max(0, plan.peak - most))) for options, most in plan.others.items()]
    if others:
        tables.show(("with", PEAK, "saves"), others, right=(PEAK, "saves"))
