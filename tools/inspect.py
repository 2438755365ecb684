"""`ldmrt inspect`: what a bundle holds."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ldmrt.runtime import Bundle


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
def inspect(bundle: Path) -> None:
    """Check the files of BUNDLE against its manifest and show components, inputs, outputs and what made them.

    Example: ldmrt inspect out/emoji64
    """
    from rich.console import Console
    from rich.table import Table

    from ldmrt.runtime.bundle import Bundle

    opened = Bundle.open(bundle)
    files = opened.manifest.get("files", {})
    table = Table("component", "precision", "size", "inputs", "outputs", show_lines=True)
    for name in opened.components:
        size = sum(path.stat().st_size for path in opened.model(name).parent.iterdir())
        inputs, outputs, precision = "", "", ""
        if opened.manifest:
            specs = opened.specs(name)
            inputs, outputs = ("\n".join(map(str, side)) for side in specs)
            precision = opened.manifest["components"][name]["precision"]
        table.add_row(name, precision, f"{size / 1e6:.1f} MB", inputs, outputs)
    Console().print(table)
    prediction = opened.scheduler.get("prediction_type", "epsilon")
    shape = opened.shape
    click.echo(f"{shape.own[1]}x{shape.own[0]} pixels, latents of {shape.channels} channels at 1/{shape.factor}")
    click.echo(f"{opened.scheduler['_class_name']}, predicts {prediction}, scaling factor {shape.scaling_factor:.5g}")
    for entry in opened.manifest.get("loras", []):
        click.echo(f"LoRA {entry['file']}, weight {entry['weight']:g}")
    for entry in opened.manifest.get("embeddings", []):
        click.echo(f"words of {entry['file']}: {' or '.join(entry.get('words', [entry['token']]))}")
    if opened.manifest:
        click.echo("made by " + ", ".join(f"{name} {version}" for name, version in opened.manifest["made_by"].items()))
        click.echo(f"{len(files)} files are as the manifest says")
        click.echo(f"certificate: {certified(opened)}")
    else:
        click.echo("no manifest: nothing could be checked, and nobody has proven these files")


def certified(bundle: "Bundle") -> str:
    """What was measured, in a line."""
    made = bundle.certificate
    if bundle.doubts or made is None:
        return "; ".join(bundle.doubts)
    backends = ", ".join(sorted({one.backend for one in made.figures}))
    picture = "".join(f", the picture {one.psnr:.1f} dB" for one in sorted(made.pictures, key=lambda one: one.psnr)[:1])
    left = f", {len(made.left_out)} cases left out" if made.left_out else ""
    return f"{len(made.figures)} figures within tolerance on {backends}{picture}{left}; `ldmrt verify`"
