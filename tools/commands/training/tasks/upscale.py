"""Run `ldmrt train upscale`: a U-Net in latents that enlarges, from a checkpoint that draws images of prompts."""

from dataclasses import replace
from typing import Any

import click

from ldmrt.tools.console.training.base import Base, base_options
from ldmrt.tools.console.training.checks import check
from ldmrt.tools.console.training.options import Options, training_options


@click.command()
@training_options(steps=1000, batch=4, rate=1e-5)
@base_options
def upscale(options: Options, source: str, **values: Any) -> None:
    """Train a checkpoint to enlarge images in latents; write a whole upscaling checkpoint to OUT.

    A model in pixels that enlarges is trained by ldmrt train upscaler, from scratch.

    Example: ldmrt train upscale --from runs/ldm --data photos --out runs/upscale
    """
    from ldmrt.model.families.upscaler import NOISER
    from ldmrt.model.training.latents import to_images, to_tensor
    from ldmrt.model.training.tasks.upscale import GIVES, SmallImages, smaller, upscaling

    settings = check(options)
    base = Base.open(options, source, adapt=upscaling, gives=GIVES, **values)
    stage, factor = base.checkpoint.stage, base.vae.config.factor
    examples = base.examples(options.seed)
    base = replace(base, prompts=[example.caption for example in examples])
    given = dict[str, Any]()
    if examples:
        small = to_images(smaller(to_tensor([example.image for example in examples], "cpu"), factor))
        given = {"above": small.repeat(factor, axis=1).repeat(factor, axis=2), "image": list(small)}
    beside = SmallImages(factor, base.checkpoint.noisers[NOISER], stage.max_noise_level, base.dropout)
    base.train(options, settings, "upscale", beside=beside, **given)
