"""Run `ldmrt replay`: draw an image or an animation again, and compare it."""

import sys
from pathlib import Path

import click

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.options.types import IMAGE

DIFFERS = 1  # the exit code


@click.command()
@click.argument("file", type=IMAGE)
@click.option("--bundle", type=click.Path(path_type=Path), help="The bundle, where none of its name is in . or out.")
@click.option("--refiner", type=click.Path(path_type=Path), help="The refiner's bundle, likewise.")
@click.option(
    "--hires-upscaler",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The upscale model's bundle, where none of its name is in . or out.",
)
@click.option("--backend", help="In place of the one that drew it.")
@click.option(
    "--inputs",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of the images that it was drawn from; by default they are looked for here and beside FILE.",
)
@click.option(
    "-o",
    "--out",
    type=Output(),
    help="File for what is drawn: .png, .jpg or .webp; of an animation, as FILE is; by default none is written.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing file; without it, OUT gets a free number.")
def replay(
    file: Path,
    bundle: Path | None,
    refiner: Path | None,
    hires_upscaler: Path | None,
    backend: str | None,
    inputs: Path | None,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Draw FILE, an image, a grid or an animation of ldmrt, again from the record in it, and compare all pixels.

    What an upscale model has enlarged is enlarged again, from the image that it was.

    On the same bundle, backend and versions it is identical. What differs is listed. The exit code is 1 where pixels
    differ.

    Example: ldmrt replay out/apple.png
    """
    from ldmrt.runtime.errors import printable
    from ldmrt.tools.console import tables
    from ldmrt.tools.console.drawing.embedded.programs import describe
    from ldmrt.tools.console.drawing.image_paths import FORMATS, free_path
    from ldmrt.tools.console.drawing.replaying.enlarged import enlarge_again, is_enlarged
    from ldmrt.tools.console.drawing.replaying.records import Record
    from ldmrt.tools.console.drawing.replaying.replay import replay as draw_again
    from ldmrt.tools.console.drawing.replaying.sources import find_bundle

    image = describe("replay", Path(file))
    record = None if is_enlarged(image) else Record.of(image)  # raises before a bundle is looked for
    formats = FORMATS if record is None else record.formats
    folder = find_bundle(image, bundle)
    if out is not None:
        path = free_path(out, 1, steps=False, overwrite=overwrite, formats=formats)
        out = click.get_current_context().with_resource(path)
    if record is None:
        again = enlarge_again(image, folder, backend, inputs)
    else:
        other = None if record.refiner is None else find_bundle(image, refiner, record.refiner.name, "--refiner")
        name = record.upscaler
        model = None if name is None else find_bundle(image, hires_upscaler, name, "--hires-upscaler")
        again = draw_again(record, folder, other, backend, inputs, model)
    if out is not None:
        again.save(out)
    if again.differences:
        rows = [tuple(map(printable, row)) for row in again.differences]
        tables.show(("differs", "then", "now"), rows)
    pixels = again.comparison
    if pixels.differing:
        share = f"{pixels.differing} of {pixels.total} bytes of pixels differ, PSNR {pixels.psnr:.1f} dB"
        click.echo(f"not identical: {again.size}, {share}")
    else:
        click.echo(f"identical: {again.size}, all {pixels.total} bytes of pixels")
    if out is not None:
        click.echo(out)
    if pixels.differing:
        sys.exit(DIFFERS)
