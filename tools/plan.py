"""`ldmrt plan`: what engines would take."""

from pathlib import Path

import click

from .build import chosen, of_profile, read


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@of_profile
def plan(
    bundle: Path, sizes: str | None, batch: str, guidance: str, only: str | None, folded: bool, steps: int
) -> None:  # fmt: skip
    """Predict what engines of BUNDLE take, for one GPU: its memory for weights, scratch, inputs and outputs; disk; and
    the memory of the machine that builds them. Nothing is built, and no TensorRT is needed.

    Example: ldmrt plan out/emoji64 --sizes 64x64,128x128 --batch 1-4
    """
    from rich.console import Console
    from rich.table import Table

    from ldmrt.export.memory import predict, vram
    from ldmrt.export.profiles import recipes
    from ldmrt.runtime import Bundle
    from ldmrt.runtime.engine_files import described
    from ldmrt.runtime.machine import megabytes

    opened = Bundle.open(bundle)
    wanted, graphs = read(opened, sizes, batch, guidance, steps), chosen(opened, only, folded)
    wished = recipes(opened, wanted, backend="tensorrt-rtx", version="", targets=["any"], graphs=graphs)
    rows = [predict(opened, one) for one in wished]
    table = Table()
    for title in ("component", "largest input", "weights", "scratch", "in, out", "disk", "to build"):
        table.add_column(title, no_wrap=title == "component")
    for row in rows:
        taken = (row.weights, row.scratch, row.io, row.disk, row.build)
        table.add_row(row.recipe.component, described(row.recipe.profile), *map(megabytes, taken))
    disk, build = sum(row.disk for row in rows), max(row.build for row in rows)
    Console().print(table)
    click.echo(f"GPU memory {megabytes(vram(rows))}, as engines that run one by one share the largest scratch")
    click.echo(f"disk {megabytes(disk)}; memory to build {megabytes(build)}, one engine at a time")
