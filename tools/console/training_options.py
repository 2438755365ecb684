"""Define the options that all trainings have."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import click

from ldmrt.tools.options.common import SIDE, Choice

from .outputs import Output

P = ParamSpec("P")
R = TypeVar("R")
RATE = click.FloatRange(0, 1, min_open=True)


def _finite(ctx: click.Context, option: click.Parameter, value: float) -> float:
    """Refuse NaN, which click's ranges accept."""
    if not math.isfinite(value):
        raise click.BadParameter("not a number")
    return value


def training_options(steps: int, batch: int, rate: float) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a decorator that adds the options of every training, with these defaults."""
    options = [
        click.option("--data", "folder", type=click.Path(path_type=Path), required=True,
                     help="Sprites built by `ldmrt data emoji`, or a folder of images with metadata.jsonl."),
        click.option("--style", "styles", multiple=True, help="Emoji styles to use; all by default."),
        click.option("--group", "groups", multiple=True, help="Emoji groups to use; all by default."),
        click.option("--layout", "layouts", multiple=True, default=["large"], show_default=True,
                     help="Emoji layouts: large, small, pair."),
        click.option("--out", type=Output(folder=True), required=True, help="Folder of the run."),
        click.option("--steps", type=click.IntRange(min=1), default=steps, show_default=True,
                     help="Batches to learn from."),
        click.option("--batch", type=click.IntRange(min=1), default=batch, show_default=True,
                     help="Images per step."),
        click.option("--learning-rate", type=RATE, default=rate, show_default=True,
                     callback=_finite, help="The highest learning rate, after the warm-up."),
        SIDE,
        click.option("--on-bad", type=Choice(["stop", "skip"]), default="stop", show_default=True,
                     help="Stop at, or skip, unreadable images and lines without a caption."),
        click.option("--on-small", type=Choice(["stop", "skip"]), default="stop", show_default=True,
                     help="Stop at, or skip, images that would be enlarged more than twice."),
        click.option("--seed", type=click.IntRange(0, 2**32), default=0, show_default=True,
                     help="Seed of weights, order and noise."),
        click.option("--device", type=Choice(["cpu", "cuda"]), default="cpu", show_default=True,
                     help="Device of the training."),
        click.option("--precision", type=Choice(["fp32", "bf16"]), default="fp32", show_default=True,
                     help="Precision of the networks; weights stay fp32."),
        click.option("--save-every", type=click.IntRange(min=1), default=500, show_default=True,
                     help="Steps between checkpoints."),
        click.option("--resume", is_flag=True, help="Continue from the last checkpoint in --out."),
        click.option("--change", multiple=True, metavar="NAME",
                     help="With --resume: use a new value of this setting, such as steps."),
    ]  # fmt: skip

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate
