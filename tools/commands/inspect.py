"""Run `ldmrt inspect`: check the files of a bundle and show its components."""

import json
import math
from dataclasses import asdict
from functools import partial
from operator import eq
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldmrt.tools.options.stages import every_stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.bundle.certificate import Certificate
    from ldmrt.runtime.files.reading import JsonObject


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@every_stage(lambda options: options["as_json"])
def inspect(bundle: Path, as_json: bool) -> None:
    """Check the files of BUNDLE against its manifest and show its components, inputs, outputs and certificate.

    With --json: "bundle", "components" (each "name", "precision", "bytes", "inputs" and "outputs" of "name", "dtype"
    and "shape"), "stages" as the manifest holds them, "then", the names of a cascade's later stages, "size" in pixels,
    "latent_channels", "latent_factor", "scaling_factor", "scheduler", "prediction_type", "loras", "embeddings", "words"
    (of the checkpoint's own tokenizers, beside their vocabulary), "made_by", "files" (how many were checked) and
    "certificate": "holds", "issues", "uncovered", "backends", "figures", "left_out", "psnr", the lowest in dB, and
    "narrow": for each backend that computes in a precision below the bundle's whether it is "within" its tolerances,
    its "psnr", the lowest "ssim", the "time" of a row and of decoding relative to float32, and its "islands", the
    modules that stay in float32, by component. Of an upscale model "upscale_model" is what it is, and
    only "components", "made_by", "files" and "certificate" are there. Unknown values, and an infinite PSNR, are null.

    Example: ldmrt inspect out/emoji64
    """
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.errors import printable
    from ldmrt.runtime.pipeline.autoencoder.upscale_bundle import is_upscale_model, open_upscale_bundle

    if is_upscale_model(bundle):
        opened, model = open_upscale_bundle(bundle)
        facts: JsonObject = {"bundle": str(bundle), "upscale_model": asdict(model)}
        facts |= {"components": [_component(opened, name) for name in opened.components], **_made(opened)}
        if as_json:
            click.echo(json.dumps(facts, indent=2))
            return
        show_components(opened, facts)
        click.echo(printable(f"{model.name}: {model.architecture}, {model.scale} times larger"))
        show_files(facts)
        return
    opened = Bundle.open(bundle)
    facts = described(opened)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        show(opened, facts)


def described(bundle: "Bundle") -> "JsonObject":
    """Return the JSON object that `--json` prints."""
    from ldmrt.runtime.samplers.config import prediction_type
    from ldmrt.tools.console.words import own_words

    stage = bundle.stage
    return {
        "bundle": str(bundle.path),
        "components": [_component(bundle, name) for name in bundle.components],
        "stages": [stage.to_json() for stage in bundle.stages],
        "then": list(bundle.then),
        "size": stage.size,
        "latent_channels": stage.space.channels,
        "latent_factor": stage.space.factor,
        "scaling_factor": stage.space.scaling_factor,
        "scheduler": bundle.scheduler.get("_class_name"),
        "prediction_type": prediction_type(bundle.scheduler),
        "loras": bundle.manifest.get("loras", []),
        "embeddings": bundle.manifest.get("embeddings", []),
        "words": own_words(bundle.tokenizers, bundle.manifest.get("embeddings", [])),
        **_made(bundle),
    }


def _made(bundle: "Bundle") -> "JsonObject":
    """Describe what made a bundle, its files and its certificate."""
    certificate = bundle.certificate
    narrow = certificate.islands if certificate else {}
    return {
        "made_by": bundle.manifest.get("made_by"),
        "files": len(bundle.manifest.get("files", {})),
        "certificate": {
            "holds": not bundle.certificate_issues,
            "issues": bundle.certificate_issues,
            "uncovered": bundle.uncovered or None,
            "backends": sorted({figure.backend for figure in certificate.figures}) if certificate else [],
            "figures": len(certificate.figures) if certificate else 0,
            "left_out": len(certificate.left_out) if certificate else 0,
            "psnr": _lowest(certificate, lambda backend: backend not in narrow),
            "low_memory": bool(certificate and certificate.about.get("low_memory")),
            "narrow": {name: _narrow(certificate, name) for name in certificate.islands} if certificate else {},
        },
    }


def _narrow(certificate: "Certificate", backend: str) -> "JsonObject":
    """Describe what a certificate states of a backend in a narrow precision."""
    ssim = [image.ssim for image in certificate.pictures if image.backend == backend and image.ssim is not None]
    return {
        "within": not certificate.past_limit([backend]),
        "psnr": _lowest(certificate, partial(eq, backend)),
        "ssim": min(ssim, default=None),
        "time": {gain.what: gain.ratio for gain in certificate.times if gain.backend == backend},
        "islands": certificate.islands[backend],
    }


def _lowest(certificate: "Certificate | None", counts: "Callable[[str], bool]") -> float | None:
    """Return the lowest PSNR in dB of the images of some backends; None where it is infinite."""
    pictures = certificate.pictures if certificate else ()
    lowest = min((image.psnr for image in pictures if counts(image.backend)), default=math.inf)
    return lowest if math.isfinite(lowest) else None


def _component(bundle: "Bundle", name: str) -> "JsonObject":
    """Describe a component; a bundle without a manifest says nothing of inputs, outputs and precision."""
    known = bool(bundle.manifest)
    sides = bundle.specs(name) if known else (None, None)
    inputs, outputs = (
        None if side is None else [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in side]
        for side in sides
    )
    size = sum((bundle.path / name / file).stat().st_size for file in bundle.contents.files_in(name))
    precision = bundle.precision(name) if known else None
    return {"name": name, "precision": precision, "bytes": size, "inputs": inputs, "outputs": outputs}


def show(bundle: "Bundle", facts: "JsonObject") -> None:
    """Print what `described` returned as a table and lines of text."""
    from ldmrt.runtime.bundle.graphs import DECODER_PREVIEW
    from ldmrt.runtime.bundle.stages import PIXELS
    from ldmrt.runtime.errors import printable
    from ldmrt.tools.console.words import listed, words_of

    show_components(bundle, facts)
    height, width = bundle.stage.own
    channels, factor = facts["latent_channels"], facts["latent_factor"]
    latents = f"latents of {channels} channels at 1/{factor}"
    space = f"sampled in pixels of {channels} channels" if bundle.stage.space.codec == PIXELS else latents
    click.echo(f"{width}x{height} pixels, {space}")
    predicts = f"predicts {facts['prediction_type']}, scaling factor {facts['scaling_factor']:.5g}"
    click.echo(f"{facts['scheduler']}, {predicts}")
    if (previewed := bundle.stage.preview) is not None:
        click.echo(f"previews by {DECODER_PREVIEW}, scaling factor {previewed.scaling_factor:.5g}")
    given = [source.kind.replace("_", " ") for sources in bundle.stage.reads.values() for source in sources]
    own = any(source in given for source in ("guidance", "guidance scale"))
    scales = (*(["its own input"] if own else []), *bundle.stage.guide.scales)
    usual = dict.fromkeys(("its own input", "guidance_scale"), f" ({bundle.stage.guidance_scale:g} by default)")
    guided = " and ".join(name + usual.get(name, "") for name in scales) or "nothing"
    click.echo(f"the network is given {', '.join(given)}; guided by {guided}")
    for entry in facts["loras"]:
        click.echo(printable(f"LoRA {entry['file']}, weight {entry['weight']:g}"))
    for entry in facts["embeddings"]:
        click.echo(printable(f"words of {entry['file']}: {' or '.join(words_of(entry))}"))
    if facts["words"]:
        click.echo(printable(f"words of the checkpoint: {listed(facts['words'])}"))
    if bundle.manifest:
        show_files(facts)
        for name, narrow in facts["certificate"]["narrow"].items():
            paths = [f"{one}.{path}".rstrip(".") for one, modules in narrow["islands"].items() for path in modules]
            similar = "" if narrow["ssim"] is None else f", SSIM {narrow['ssim']:.3f}"
            times = "".join(f", {what} in {ratio:.2f} of fp32's time" for what, ratio in narrow["time"].items())
            click.echo(f"{name}: {'' if narrow['within'] else 'not the same model, '}{_image(narrow['psnr'])}{similar}"
                       f"{times}, in float32 there: {', '.join(paths) or 'nothing'}")  # fmt: skip
    else:
        click.echo("no manifest: nothing could be checked, and nothing is proven")


def show_components(bundle: "Bundle", facts: "JsonObject") -> None:
    """Print the table of components."""
    from ldmrt.tools.console import tables

    rows = []
    for component in facts["components"]:
        sides = bundle.specs(component["name"]) if bundle.manifest else ((), ())
        inputs, outputs = ("\n".join(map(str, side)) for side in sides)
        size = f"{component['bytes'] / 1e6:.1f} MB"
        rows.append((component["name"], component["precision"] or "", size, inputs, outputs))
    tables.show(("component", "precision", "size", "inputs", "outputs"), rows, lines=True)


def show_files(facts: "JsonObject") -> None:
    """Print what made a bundle, how many files match its manifest, and what its certificate says."""
    click.echo("made by " + ", ".join(f"{name} {version}" for name, version in facts["made_by"].items()))
    click.echo(f"{facts['files']} files match the manifest")
    click.echo(f"certificate: {certified(facts['certificate'], drawn='upscale_model' not in facts)}")


def certified(facts: "JsonObject", *, drawn: bool = True) -> str:
    """Summarise a certificate in one line, or list why it does not hold."""
    if not facts["holds"]:
        return "; ".join(facts["issues"])
    image = f", {_image(facts['psnr'])}" if drawn else ""
    skipped = f", {facts['left_out']} cases skipped" if facts["left_out"] else ""
    backends = ", ".join(facts["backends"]) + ", in low memory" * facts["low_memory"]
    old = f"; {facts['uncovered']}" if facts["uncovered"] else ""
    return f"{facts['figures']} figures within tolerance on {backends}{image}{skipped}; `ldmrt verify`{old}"


def _image(psnr: float | None) -> str:
    return "the image identical" if psnr is None else f"the image {psnr:.1f} dB"
