"""`ldmrt inspect`: what a bundle holds."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ldmrt.runtime.bundle.bundle import Bundle


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the table.")
def inspect(bundle: Path, as_json: bool) -> None:
    """Check the files of BUNDLE against its manifest and show components, inputs, outputs and what made them.

    With --json: "bundle", "components" (each "name", "precision", "bytes", "inputs" and "outputs" of "name", "dtype"
    and "shape"), "size" in pixels, "latent_channels", "latent_factor", "scaling_factor", "scheduler",
    "prediction_type", "loras", "embeddings", "words" (of the checkpoint's own tokenizers, beside their vocabulary),
    "made_by", "files" (how many were checked) and "certificate": "holds", "issues", "uncovered", "backends", "figures",
    "left_out", and "psnr", the least in dB. What is not known, and a PSNR that is infinite, is null.

    Example: ldmrt inspect out/emoji64
    """
    from ldmrt.runtime.bundle.bundle import Bundle

    opened = Bundle.open(bundle)
    facts = described(opened)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        show(opened, facts)


def described(bundle: "Bundle") -> dict[str, Any]:
    """Return what the JSON holds."""
    from ldmrt.tools.console.words import own_words

    shape, made = bundle.shape, bundle.certificate
    least = min((one.psnr for one in made.pictures), default=math.inf) if made else math.inf
    return {
        "bundle": str(bundle.path),
        "components": [_component(bundle, name) for name in bundle.components],
        "size": shape.size,
        "latent_channels": shape.channels,
        "latent_factor": shape.factor,
        "scaling_factor": shape.scaling_factor,
        "scheduler": bundle.scheduler.get("_class_name"),
        "prediction_type": bundle.scheduler.get("prediction_type", "epsilon"),
        "loras": bundle.manifest.get("loras", []),
        "embeddings": bundle.manifest.get("embeddings", []),
        "words": own_words(bundle.tokenizers, bundle.manifest.get("embeddings", [])),
        "made_by": bundle.manifest.get("made_by"),
        "files": len(bundle.manifest.get("files", {})),
        "certificate": {
            "holds": not bundle.certificate_issues,
            "issues": bundle.certificate_issues,
            "uncovered": bundle.uncovered or None,
            "backends": sorted({one.backend for one in made.figures}) if made else [],
            "figures": len(made.figures) if made else 0,
            "left_out": len(made.left_out) if made else 0,
            "psnr": least if math.isfinite(least) else None,
        },
    }


def _component(bundle: "Bundle", name: str) -> dict[str, Any]:
    known = bool(bundle.manifest)
    sides = bundle.specs(name) if known else (None, None)
    inputs, outputs = (
        None if side is None else [{"name": one.name, "dtype": one.dtype, "shape": list(one.shape)} for one in side]
        for side in sides
    )
    size = sum((bundle.path / name / file).stat().st_size for file in bundle.contents.files_in(name))
    precision = bundle.precision(name) if known else None
    return {"name": name, "precision": precision, "bytes": size, "inputs": inputs, "outputs": outputs}


def show(bundle: "Bundle", facts: dict[str, Any]) -> None:
    """Show the same as text."""
    from ldmrt.runtime.errors import printable
    from ldmrt.tools.console import tables
    from ldmrt.tools.console.words import listed, words_of

    rows = []
    for one in facts["components"]:
        sides = bundle.specs(one["name"]) if bundle.manifest else ((), ())
        inputs, outputs = ("\n".join(map(str, side)) for side in sides)
        rows.append((one["name"], one["precision"] or "", f"{one['bytes'] / 1e6:.1f} MB", inputs, outputs))
    tables.show(("component", "precision", "size", "inputs", "outputs"), rows, lines=True)
    height, width = bundle.shape.own
    click.echo(f"{width}x{height} pixels, latents of {facts['latent_channels']} channels at 1/{facts['latent_factor']}")
    predicts = f"predicts {facts['prediction_type']}, scaling factor {facts['scaling_factor']:.5g}"
    click.echo(f"{facts['scheduler']}, {predicts}")
    for entry in facts["loras"]:
        click.echo(printable(f"LoRA {entry['file']}, weight {entry['weight']:g}"))
    for entry in facts["embeddings"]:
        click.echo(printable(f"words of {entry['file']}: {' or '.join(words_of(entry))}"))
    if facts["words"]:
        click.echo(printable(f"words of the checkpoint: {listed(facts['words'])}"))
    if bundle.manifest:
        click.echo("made by " + ", ".join(f"{name} {version}" for name, version in facts["made_by"].items()))
        click.echo(f"{facts['files']} files are as the manifest says")
        click.echo(f"certificate: {certified(facts['certificate'])}")
    else:
        click.echo("no manifest: nothing could be checked, and nobody has proven these files")


def certified(facts: dict[str, Any]) -> str:
    """Say in a line what was measured."""
    if not facts["holds"]:
        return "; ".join(facts["issues"])
    picture = "the picture identical" if facts["psnr"] is None else f"the picture {facts['psnr']:.1f} dB"
    left = f", {facts['left_out']} cases skipped" if facts["left_out"] else ""
    backends = ", ".join(facts["backends"])
    old = f"; {facts['uncovered']}" if facts["uncovered"] else ""
    return f"{facts['figures']} figures within tolerance on {backends}, {picture}{left}; `ldmrt verify`{old}"
