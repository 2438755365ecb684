"""Run `ldmrt train finetune`: a checkpoint's U-Net, and by choice its text encoders."""

from typing import Any

import click

from ldmrt.tools.console.training.base import Base, base_options
from ldmrt.tools.console.training.checks import check
from ldmrt.tools.console.training.images.regularisation import Regularising, regularisation_options
from ldmrt.tools.console.training.options import Options, training_options


@click.command()
@training_options(steps=1000, batch=4, rate=1e-5)
@base_options
@regularisation_options
def finetune(options: Options, source: str, **values: Any) -> None:
    """Train a checkpoint further, on images of your own; write a whole checkpoint to OUT.

    Example: ldmrt train finetune --from runs/ldm --data photos --out runs/photos
    """
    regularising, settings = Regularising.of(values), check(options)
    Base.open(options, source, regularising=regularising, **values).train(options, settings, "finetune")
