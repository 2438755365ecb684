"""Show the log of a training: a table of some of its lines, and the curve of its loss."""

import math
from pathlib import Path

import click

from ldmrt.runtime.errors import LdmrtError
from ldmrt.tools.console.drawing.curve import curve
from ldmrt.tools.console.tables import show

LOG = "log.jsonl"
ROWS = 12  # of the table, evenly spaced


def show_log(out: Path) -> None:
    """Print the log of the run in a folder.

    Raises:
        LdmrtError: The folder has no log, or it is damaged.
    """
    from ldmrt.model.training.log import read_log

    path = out / LOG
    if not path.is_file():
        raise LdmrtError("train", f"no log in {out}", expected=path, hint="the folder of a run, its --out")
    everything = read_log(path)
    lines = [line for line in everything if "validation" not in line]
    held = [line for line in everything if "validation" in line and line["loss"] is not None]
    if not lines:
        raise LdmrtError("train", f"{path} is empty", hint="wait for the first line; --log-every says when it comes")
    chosen = [lines[i] for i in sorted({(len(lines) - 1) * row // (ROWS - 1) for row in range(ROWS)})]
    parts = list(lines[-1]["parts"]) if len(lines[-1]["parts"]) > 1 else []
    titles = ("step", "loss", *parts, "learning rate", "gradient", "images/s")
    rows = [
        (
            str(line["step"]),
            *(f"{value:.4g}" for value in (line["loss"], *(line["parts"].get(name, math.nan) for name in parts))),
            f"{line['learning_rate']:.2e}", f"{line['gradient_norm']:.3g}", f"{line['images_per_second']:.1f}",
        )
        for line in chosen
    ]  # fmt: skip
    show(titles, rows, right=titles)
    last = lines[-1]
    click.echo(f"{last['samples']} samples, {last['skipped']} images skipped, at most {last['memory_mb']:.0f} MB")
    if "loss_scale" in last:
        click.echo(f"{last['steps_skipped']} steps skipped in fp16, loss scale {last['loss_scale']:g}")
    click.echo(f"loss, steps {lines[0]['step']} to {lines[-1]['step']}")
    click.echo("\n".join(curve([max(line["loss"], 1e-12) for line in lines])))
    if held:
        click.echo(f"loss of held-out images, steps {held[0]['step']} to {held[-1]['step']}")
        click.echo("\n".join(curve([max(line["loss"], 1e-12) for line in held])))
    if times := last.get("loss_by_timestep"):
        click.echo("loss by tenths of the timesteps, from the clean end, of the last line")
        click.echo("  ".join("-" if value is None else f"{value:.3g}" for value in times))
