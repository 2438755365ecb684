"""Run `ldmrt plan`: predict the memory and disk space of engines."""

import json
from pathlib import Path

import click

from ldmrt.tools.options.engines import EngineOptions, engine_options
from ldmrt.tools.options.stages import every_stage

# Predicted bytes of an engine: the key in JSON, the title of the column.
SIZES = {"weights": "weights", "scratch": "scratch", "io": "in, out", "disk": "disk", "build": "to build"}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@every_stage(lambda options: options["as_json"] or options["engines"].chosen)
def plan(
    bundle: Path,
    engines: EngineOptions,
    as_json: bool,
) -> None:
    """Predict the memory and disk space of engines of BUNDLE, without building them and without TensorRT.

    The memory is that of one GPU for weights, scratch, inputs and outputs, and that of the machine that builds. With
    --weight-streaming the weights are the share that stays on the GPU.

    With --json: "bundle"; "engines", each with its "component", "profile" (for every bucket the "min", "opt" and "max"
    shape of each input) and its bytes: "weights", "scratch", "io", "disk" and "build"; and the bytes of all, "gpu",
    "disk" and "build".

    Example: ldmrt plan out/emoji64 --sizes 64x64,128x128 --batch 1-4
    """
    from ldmrt.export.engines.engine_memory import predict, vram
    from ldmrt.export.engines.profiles import recipes
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.bundle.engines.engine_key import described
    from ldmrt.runtime.host import megabytes
    from ldmrt.tools.console import tables

    opened = Bundle.open(bundle)
    wanted, graphs = engines.wanted(opened), engines.graphs(opened)
    planned = recipes(
        opened, wanted, backend="tensorrt-rtx", version="", targets=["any"], flags=engines.flags, graphs=graphs
    )
    rows = [predict(opened, recipe) for recipe in planned]
    disk, build = sum(row.disk for row in rows), max(row.build for row in rows)
    if as_json:
        listed = [
            {
                "component": row.recipe.component,
                "profile": row.recipe.plain_profile,
                **{name: getattr(row, name) for name in SIZES},
            }
            for row in rows
        ]
        total = {"gpu": vram(rows), "disk": disk, "build": build}
        click.echo(json.dumps({"bundle": str(bundle), "engines": listed, **total}, indent=2))
        return
    cells = [
        (row.recipe.component, described(row.recipe.profile), *(megabytes(getattr(row, name)) for name in SIZES))
        for row in rows
    ]
    tables.show(("component", "largest input", *SIZES.values()), cells)
    click.echo(f"GPU memory {megabytes(vram(rows))}, as engines that run one by one share the largest scratch")
    click.echo(f"disk {megabytes(disk)}; memory to build {megabytes(build)}, one engine at a time")
