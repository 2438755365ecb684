"""Run `ldmrt train inpaint`: a U-Net that fills a part of an image, from a checkpoint that draws whole ones."""

from dataclasses import replace
from typing import Any

import click

from ldmrt.tools.console.training.base import Base, base_options
from ldmrt.tools.console.training.checks import check
from ldmrt.tools.console.training.options import Options, training_options
from ldmrt.tools.options.common import Choice

KINDS = ["boxes", "strokes", "all"]


@click.command()
@training_options(steps=1000, batch=4, rate=1e-5)
@base_options
@click.option("--masks", "kinds", type=Choice(KINDS), multiple=True, default=KINDS, show_default=True,
              help="Kinds of random masks, of which each sample draws one; may be repeated.")  # fmt: skip
def inpaint(options: Options, source: str, kinds: tuple[str, ...], **values: Any) -> None:
    """Train a checkpoint to fill the masked part of images; write a whole inpainting checkpoint to OUT.

    Example: ldmrt train inpaint --from runs/ldm --data photos --out runs/inpaint
    """
    from ldmrt.model.training.draws import Draws
    from ldmrt.model.training.latents import to_images, to_tensor
    from ldmrt.model.training.tasks.inpaint import Masked, inpainting, masked
    from ldmrt.model.training.tasks.masks import draw_masks
    from ldmrt.runtime.bundle.stages import MASK_KINDS

    settings = check(options)
    base = Base.open(options, source, adapt=inpainting, gives=MASK_KINDS, **values)
    examples = base.examples(options.seed)
    base = replace(base, prompts=[example.caption for example in examples])
    given = dict[str, Any]()
    if examples:
        images = to_tensor([example.image for example in examples], "cpu")
        masks = draw_masks(Draws(options.seed + 1, range(len(examples))), (options.size, options.size), kinds)
        given = {
            "above": to_images(masked(images, masks)),
            "image": [example.image for example in examples],
            "mask_image": list(masks[:, 0].numpy()),
        }
    base.train(options, settings, "inpaint", {"masks": ", ".join(kinds)}, Masked(base.vae, kinds), **given)
