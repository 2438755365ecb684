"""`ldmrt verify`: a bundle against its checkpoint."""

import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .export import of_checkpoint

if TYPE_CHECKING:
    from ldmrt.export import Difference


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--against", "checkpoint", required=True, help="The checkpoint: a folder, a file or OWNER/NAME.")
@of_checkpoint
@click.option("--prompt", default="a red apple, noto style, blue background", show_default=True)
@click.option("--seed", default=0, show_default=True)
def verify(
    bundle: Path, checkpoint: str, variant: str | None, tokenizer: Path | None, prediction: str | None, prompt: str,
    seed: int,
) -> None:  # fmt: skip
    """Run BUNDLE and its checkpoint side by side: every component on the same inputs, then one picture from the same
    latents. Exit code 1 where a difference passes its tolerance.

    Example: ldmrt verify out/emoji64 --against model/pretrained/emoji64
    """
    from rich.console import Console
    from rich.table import Table

    from ldmrt.export import compare
    from ldmrt.model import load

    from .progress import console

    loaded = load(checkpoint, variant=variant, tokenizer=tokenizer, prediction_type=prediction)
    table = Table("component", "largest difference", "tolerance", "time", "")
    failed, begin = [], time.perf_counter()
    with console.status("comparing") as status:
        for row in compare(bundle, loaded, prompt, seed):
            seconds, begin = time.perf_counter() - begin, time.perf_counter()
            value, limit = shown(row)
            verdict = "[green]ok[/]" if row.within else f"[red]FAILED[/] {row.detail}"
            table.add_row(row.what, value, limit, f"{seconds:.1f} s", verdict)
            status.update(f"compared {row.what}")
            failed += [] if row.within else [row.what]
    Console().print(table)
    click.echo("differences are relative to the largest value of PyTorch's output, float32; dB is the picture's PSNR")
    if failed:
        click.secho(f"past tolerance: {', '.join(failed)}", fg="red", err=True)
        sys.exit(1)


def shown(row: "Difference") -> tuple[str, str]:
    """A row's value and limit in words."""
    from ldmrt.export.parity import DB, FACTS

    if row.unit == FACTS:
        return (f"{row.value:.0f} facts differ" if row.value else "the same"), "the same"
    if row.unit == DB:
        return ("identical" if math.isinf(row.value) else f"{row.value:.1f} dB"), f">= {row.limit:g} dB"
    return f"{row.value:.1e}", f"<= {row.limit:g}"
