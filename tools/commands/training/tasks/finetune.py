"""Run `ldmrt train finetune`: a checkpoint's U-Net, and by choice its text encoders."""

from typing import Any

import click

from ldmrt.tools.console.training.base import Base, base_options
from ldmrt.tools.console.training.checks import check
from ldmrt.tools.console.training.options import Options, training_options
from ldmrt.tools.console.training.run import run_training


@click.command()
@training_options(steps=1000, batch=4, rate=1e-5)
@base_options
def finetune(options: Options, source: str, **values: Any) -> None:
    """Train a checkpoint further, on images of your own; write a whole checkpoint to OUT.

    Example: ldmrt train finetune --from runs/ldm --data photos --out runs/photos
    """
    from ldmrt.model.training.loop.run import Run

    settings, out = check(options), options.out
    base = Base.open(options, source, **values)
    run = Run(base.denoiser, settings, {"task": "finetune", **base.about})

    def keep() -> None:
        made = base.checkpoint_of(run.averaged().cpu())
        base.preview(made, out / "training" / f"finetune-{run.step:06d}.png")
        made.save(out)

    run_training(run, base.task(), options, keep, base.held)
