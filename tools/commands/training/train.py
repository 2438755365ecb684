"""Run `ldmrt train`: train models from scratch, and checkpoints further."""

from pathlib import Path

import click

from ldmrt.tools.console.training.recipe import Trainings
from ldmrt.tools.console.training.records.log import show_log
from ldmrt.tools.console.training.signals import nothing_to_save

from .tasks.autoencoder import autoencoder
from .tasks.classes import classes
from .tasks.finetune import finetune
from .tasks.inpaint import inpaint
from .tasks.ldm import ldm
from .tasks.lora import lora
from .tasks.unconditional import unconditional
from .tasks.upscale import upscale
from .tasks.upscaler import upscaler


def _show(ctx: click.Context, option: click.Parameter, out: Path | None) -> None:
    """Print the log of a run and end."""
    if out is not None:
        show_log(out)
        ctx.exit()


@click.group(cls=Trainings)
@click.option("--show", type=click.Path(path_type=Path), is_eager=True, expose_value=False, callback=_show,
              metavar="OUT", help="Print the log of the run in OUT: a table, and the curve of its loss.")  # fmt: skip
def train() -> None:
    """Train an autoencoder, then a diffusion model in its latents; or one in pixels, or an upscaler.

    A checkpoint of Stable Diffusion is trained further by finetune, by a LoRA
    beside it, or to inpaint or enlarge.

    A recipe, such as the recipe.toml of an earlier run, may take the place of a command: ldmrt train RECIPE.toml
    [--set KEY=VALUE]... --out OUT

    Example: ldmrt train autoencoder --data data/emoji --style noto --out runs/ae
    """
    click.get_current_context().with_resource(nothing_to_save())


for command in (autoencoder, ldm, finetune, lora, inpaint, upscale, classes, upscaler, unconditional):
    train.add_command(command)
