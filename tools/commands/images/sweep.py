"""Run `ldmrt sweep`: draw all combinations of some options' values, and compare them on one page."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.options.checkpoint import WeighedFile
from ldmrt.tools.options.drawing import HOW, with_opening, with_options
from ldmrt.tools.options.loras import LORA, load_loras, weights_of
from ldmrt.tools.options.prompts import WORDING, worded
from ldmrt.tools.options.to_request import request_of
from ldmrt.tools.options.types import Text

if TYPE_CHECKING:
    from ldmrt.runtime.files.reading import JsonObject
    from ldmrt.runtime.pipeline.pipeline import Pipeline
    from ldmrt.tools.console.drawing.making import Making
    from ldmrt.tools.console.drawing.sweeping.cells import Drawn, Group

FIXED = ("axis", "reference", "out", "json", "set", "scheduler-config")  # what no axis can be


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt", required=False, type=Text())
@click.option(
    "--axis",
    "written",
    multiple=True,
    type=Text(),
    required=True,
    metavar="NAME=VALUE,...",
    help="An option of this command with its values, bundle, or precision, which is --compute; again for further axes, "
    "or for more values. A prompt is one value, also with commas; an empty value is none.",
)
@click.option(
    "--reference",
    multiple=True,
    type=Text(),
    metavar="NAME=VALUE",
    help="Value of an axis in the cell that the others are compared with; the first of each axis by default.",
)
@with_options(HOW)
@with_options(WORDING)
@LORA
@with_opening
@click.option("-o", "--out", type=Output(), default=Path("sweep.html"), show_default=True, help="The page.")
@click.option("--json", "as_json", type=Output(), help="Write the figures of each cell here too.")
def sweep(
    bundle: Path,
    prompt: str | None,
    written: tuple[str, ...],
    reference: tuple[str, ...],
    opening: dict[str, Any],
    scheduler_config: Path | None,
    settings: "JsonObject",
    loras: tuple[WeighedFile, ...],
    out: Path,
    as_json: Path | None,
    **options: Any,
) -> None:
    """Draw PROMPT with BUNDLE for all combinations of the values of axes: OUT, one page of images.

    Each cell has its time, and its PSNR and SSIM to the reference; its image, saved from the page, holds how it was
    drawn. What is drawn when Ctrl-C comes is written too.

    Example: ldmrt sweep out/emoji64 "a red apple, noto style" --axis steps=5,10,20 --axis scheduler=ddim,dpmpp_2m
    """
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.files.writing import write_atomically
    from ldmrt.runtime.host import processor
    from ldmrt.runtime.images.png import encode_png
    from ldmrt.runtime.pipeline.opening import open_pipeline
    from ldmrt.runtime.samplers.settings import read_scheduler
    from ldmrt.tools.console.drawing.making import Making
    from ldmrt.tools.console.drawing.sweeping.axes import Cell, axes_of, cells_of, options_of, reference_of
    from ldmrt.tools.console.drawing.sweeping.cells import Asked, check_cells, compared, compute_of, draw_cells
    from ldmrt.tools.console.progress import watched
    from ldmrt.tools.reports.sweep_html import Shown, write_sweep

    command = click.get_current_context().command
    axes = axes_of(written, options_of(command, FIXED))
    chosen, cells = reference_of(reference, axes), cells_of(axes)
    opened_by = ("bundle", *opening)
    base = {"bundle": bundle, "prompt": prompt, **options, **opening, "loras": loras, "scheduler_settings": settings}
    config = None if scheduler_config is None else read_scheduler(scheduler_config)
    asked, files = dict[Cell, Asked](), dict[Path, WeighedFile]()
    for cell in sorted(cells, key=lambda cell: cell != chosen):  # the reference first, so that an early stop has it
        values = cell.values(axes, base)
        files |= {lora.path: lora for lora in values["loras"]}
        try:
            if any(axis.name == "precision" for axis in axes):
                values["compute"] = compute_of(values["bundle"], values["backend"], values["compute"])
            words = {name: value for name, value in values.items() if name not in opened_by}
            words |= {"prompt": None if words["prompt"] is None else (words["prompt"],)}
            words |= {"loras": weights_of(words["loras"])}
            styled = words["style"] or all(
                axis.name != "style" for axis in axes
            )  # a cell without has no use for a file
            words = worded(words, words["styles"] if styled else None, words["style"], words["wildcards"])
            words = {name: value for name, value in words.items() if name not in ("styles", "style", "wildcards")}
            request = request_of(words)
        except LdmrtError as error:
            raise error.about(f"{error.where} of the cell {cell.label(axes)}") from None
        if isinstance(negative := words["negative_prompt"], list):  # one for each image where it has wildcards
            words["negative_prompt"] = negative[0] if len(negative) == 1 else None
        group = tuple(values[name] for name in opened_by)
        asked[cell] = Asked(group, request, {name: value for name, value in words.items() if name != "prompt"})
    weights_of(list(files.values()))  # refuses two of one name, which stand in different cells

    def open_group(group: "Group") -> "tuple[Pipeline, Making]":
        path, *rest = group
        arguments: dict[str, Any] = dict(zip(opening, rest, strict=True))
        pipeline = open_pipeline(Path(str(path)), scheduler=config, **arguments)
        more = {"scheduler_config": config, "loras": load_loras(pipeline, list(files.values()))}
        return pipeline, Making.of(Path(str(path)), pipeline, arguments, **more)

    check_cells(asked, open_group, lambda cell: cell.label(axes))
    drawn: list[Drawn] = []
    failed = None
    try:
        drawn.extend(watched(draw_cells(asked, open_group), len(cells), lambda one: one.cell.label(axes)))
    except KeyboardInterrupt:
        if not drawn:
            raise
        click.secho(f"stopped: {len(drawn)} of {len(cells)} cells are drawn", fg="yellow", err=True)
    except LdmrtError as error:
        if not drawn:
            raise
        failed = error
    figures = compared(drawn, chosen)
    fixed = {"bundle": bundle.name, "prompt": prompt or "", "seed": str(options["seed"]), "processor": processor()}
    fixed |= {"styles": ", ".join(options["style"]), "LoRAs": ", ".join(map(str, loras))}
    about = {name: value for name, value in fixed.items() if value and name not in {axis.name for axis in axes}}
    shown = {
        one.cell.place: Shown(
            encode_png(one.sheet, one.notes),
            (one.sheet.shape[1], one.sheet.shape[0]),
            one.images.shape[1],
            **asdict(figures[one.cell]),
        )
        for one in drawn
    }
    write_sweep(out, [(axis.name, [text for text, _ in axis.choices]) for axis in axes], shown, chosen.place, about)
    if as_json is not None:
        rows = [
            {"cell": cell.texts(axes), "reference": cell == chosen, **asdict(found)}
            | ({"psnr": "identical"} if found.psnr == math.inf else {})  # JSON has no infinity
            for cell, found in figures.items()
        ]
        with write_atomically(as_json) as file:
            file.write(json.dumps({"about": about, "cells": rows}, indent=2).encode())
    if failed is not None:
        click.secho(f"{out} has {len(drawn)} of {len(cells)} cells", fg="yellow", err=True)
        raise failed
    click.echo(out)
    if len(drawn) < len(cells):
        raise click.exceptions.Exit(130)
