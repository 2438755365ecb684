"""Run `ldmrt verify`: compare a bundle with its checkpoint, or with the recording of it in the bundle."""

import json
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ldmrt.tools.console.outputs import Output, check_output
from ldmrt.tools.console.verification.measure import (
    PROMPT,
    as_exported,
    compare_and_show,
    conclude,
    record_checkpoint,
    unmeasured,
)
from ldmrt.tools.console.verification.narrow import precisions, ranges_for_int8, with_islands
from ldmrt.tools.console.verification.runnable import Runnable, runnable, short_of_memory
from ldmrt.tools.options.checkpoint import CheckpointOptions, checkpoint_options
from ldmrt.tools.options.common import COMPUTE, LOW_MEMORY
from ldmrt.tools.options.stages import every_stage

if TYPE_CHECKING:
    from ldmrt.runtime.backends.openvino.ranges import Ranges
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.bundle.certificate import Certificate, Islands
    from ldmrt.runtime.bundle.recording import Recording
    from ldmrt.runtime.parity.compare import Comparison

FILE = Output()


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--against", "checkpoint", help="The checkpoint: a folder, a file or OWNER/NAME.")
@checkpoint_options
@click.option("--prompt", default=PROMPT, show_default=True, help="Prompt of the image that both make.")
@click.option("--seed", default=0, show_default=True, help="Seed of that image.")
@click.option(
    "--side",
    type=click.IntRange(1),
    help="Pixels of that image, for engines of one size; the model's own by default, at most 256.",
)
@click.option("--backend", "backends", multiple=True, help="Backends to measure; all that can run here by default.")
@COMPUTE
@LOW_MEMORY
@click.option("--store", is_flag=True, help="Store the certificate in the bundle.")
@click.option("--json", "as_json", type=FILE, help="Write the certificate here.")
@click.option("--junit", type=FILE, help="Write it as JUnit XML, for CI services.")
@click.option("--html", type=FILE, help="Write it as a page with images, one HTML file.")
@click.option(
    "--bisect", "bisected", metavar="COMPONENT", help="Compare its modules too, to find where a difference begins."
)
@every_stage(lambda options: options["source"].checkpoint is not None)
def verify(
    source: CheckpointOptions,
    bundle: Path,
    prompt: str,
    seed: int,
    side: int | None,
    backends: tuple[str, ...],
    compute: str,
    low_memory: bool,
    store: bool,
    as_json: Path | None,
    junit: Path | None,
    html: Path | None,
    bisected: str | None,
) -> None:
    """Run BUNDLE and its checkpoint on the same inputs and compare the results.

    Compared are every component, on real inputs and edge cases; every row of a trajectory, from the checkpoint's
    latents and from its own; and one image from the same noise. Without --against the bundle is compared with the
    recording in it, which does not need PyTorch. Engines that `ldmrt build` has built for this GPU are measured too;
    cases of other shapes are skipped and listed. With --compute OpenVINO is measured in that precision; --against then
    looks for the modules that have to stay in float32, and --store keeps both precisions and these modules. For int8
    --against also measures the ranges of activations, on the rows of that image, and --store keeps them.

    Of a cascade the later stages are compared too, each on its own recorded inputs; with --against the first one alone,
    as each stage has a checkpoint of its own.

    Exit code 1 if a difference exceeds its tolerance, 2 if nothing could be measured.

    Example: ldmrt verify out/emoji64 --against model/pretrained/emoji64
    """
    from ldmrt.runtime.pipeline.autoencoder.upscale_bundle import is_upscale_model

    if is_upscale_model(bundle):
        from ldmrt.tools.console.verification.upscale_model import accept_only, verify_bundle

        accept_only(("checkpoint", "backends", "store", "as_json", "junit"))
        file = None if source.checkpoint is None else Path(source.checkpoint)
        if file is None:
            refuse_what_needs_a_checkpoint(click.get_current_context())
        certificate, measured = verify_bundle(bundle, file, backends, store=store)
        write(certificate, measured, None, as_json, junit, None)
        conclude(certificate)
        return
    from ldmrt.runtime.backends.openvino.ranges import read_ranges, to_bytes, with_ranges
    from ldmrt.runtime.backends.registry import available_backends, unavailable_precision
    from ldmrt.runtime.backends.trt.sessions import unused_engines
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.errors import LdmrtError, printable
    from ldmrt.runtime.nearest import check_known
    from ldmrt.runtime.optional import check_installed
    from ldmrt.runtime.parity.certify import certify

    if source.checkpoint is None:
        refuse_what_needs_a_checkpoint(click.get_current_context())
    opened = Bundle.open(bundle)
    if compute == "int8" and not opened.manifest:
        raise LdmrtError("verify", f"{bundle} has no manifest, to which int8 binds its ranges", hint="export it again")
    if store:
        check_output(bundle, "--store", folder=True)
    check_known("verify", filter(None, [bisected]), opened.components)
    able, refused = list[Runnable](), list[str]()
    low_memory = low_memory or short_of_memory(opened)
    before = opened.certificate if store else None
    calibrates = compute == "int8" and source.checkpoint is not None
    if calibrates:
        check_installed("int8", "nncf")
    for one, some in precisions(backends, compute, before) if store else [(compute, backends)]:
        names, ready = some or available_backends(opened, one), not (calibrates and one == compute)
        if one != compute and (missing := unavailable_precision(names, one)):
            refused.append(f"{missing}: the certificate holds it no more")
            continue
        able_in_this, others = runnable(opened, names, one, calibrated=ready, low_memory=low_memory)
        able, refused = able + able_in_this, refused + others
    if not able:
        hint = "a machine whose backend computes in bfloat16, or export with --precision fp16"
        raise LdmrtError("verify", "no backend can run the bundle", found="; ".join(refused), hint=hint)
    unused = "" if backends else unused_engines(opened)
    for line in [*refused, *([f"not measured: {unused}"] if unused else [])]:
        click.echo(line, err=True)
    islands: dict[str, Islands] = {}
    ranges: bytes | None = None
    calibrated: dict[str, Ranges] = {}  # once, for whichever backend comes first: they are of the network
    if source.checkpoint is not None:
        origin, reference = record_checkpoint(opened, source, prompt, seed, side, low_memory=low_memory)
        for place, narrow in enumerate(able):
            tables: dict[str, Ranges] = {}
            if narrow.compute == "int8" and compute == "int8":
                calibrated = calibrated or ranges_for_int8(opened, reference, narrow.backend)
                tables, ranges = calibrated, to_bytes(calibrated)
            elif narrow.compute == "int8":
                tables = read_ranges(opened)
            if narrow.compute != "fp32":
                able[place], islands[narrow.name] = with_islands(opened, reference, narrow, tables)
    else:
        origin, reference = [], opened.reference
        for line in filter(None, (*opened.certificate_issues, opened.uncovered)):
            click.echo(printable(line), err=True)
    measured = list(compare_and_show(opened, reference, able))
    computes = list(dict.fromkeys(one.compute for one in able))
    certified = opened if ranges is None else with_ranges(opened, ranges)
    low_memory = low_memory and source.checkpoint is not None
    certificate = certify(measured, certified, reference, origin, computes, islands, low_memory=low_memory)
    if store:
        from ldmrt.export.parity.store import store as store_certificate

        store_certificate(opened, certificate, reference, ranges)
    write(certificate, measured, reference, as_json, junit, html)
    if bisected is not None:
        click.echo(modules(opened, source, reference, bisected, compute, low_memory=low_memory))
    conclude(certificate)
    idle = unmeasured(opened, measured, reference)
    if idle and (backends or len(idle) == len(able)):
        raise idle[0]


def refuse_what_needs_a_checkpoint(context: click.Context) -> None:
    """Raise an `LdmrtError` for the first option on the command line that needs --against."""
    from ldmrt.runtime.errors import LdmrtError

    needy = {"prompt", "seed", "side", "store", "bisected", *(field.name for field in fields(CheckpointOptions))}
    needy.remove("checkpoint")
    for option in context.command.params:
        if option.name in needy and context.get_parameter_source(option.name) is not ParameterSource.DEFAULT:
            problem = f"{option.opts[0]} needs --against"
            hint = f"ldmrt verify {context.params['bundle']} --against CHECKPOINT"
            raise LdmrtError("verify", problem, expected="a checkpoint to measure against", hint=hint)


def modules(
    bundle: "Bundle",
    source: CheckpointOptions,
    reference: "Recording",
    name: str,
    compute: str,
    *,
    low_memory: bool = False,
) -> str:
    """Compare a component module by module, on the middle one of its recorded real calls."""
    import torch

    from ldmrt.export.components.table import components
    from ldmrt.export.parity.bisect import bisect
    from ldmrt.export.precision.streaming import streamed
    from ldmrt.model.weights.unread import leave_unread
    from ldmrt.runtime.bundle.graphs import DECODER, DECODER_FP32
    from ldmrt.runtime.parity.tolerances import tolerances

    with leave_unread() if low_memory else nullcontext():
        checkpoint = as_exported(source, bundle).load({"": None if low_memory else torch.float32})[0]
    limit = tolerances(bundle, compute)[name].limit
    graph, name = bundle.model(name), DECODER if name == DECODER_FP32 else name  # in PyTorch it is float32 anyway
    calls = [case for case in reference.cases if case.component == name and not case.name.startswith("batch")]
    call = calls[len(calls) // 2]
    with streamed(checkpoint) if low_memory else nullcontext(components(checkpoint)) as parts:
        return f"{call.name}: {bisect(parts[name], graph, call.inputs, tolerance=limit)}"


def write(
    certificate: "Certificate",
    measured: "list[Comparison]",
    reference: "Recording | None",
    as_json: Path | None,
    junit: Path | None,
    html: Path | None,
) -> None:
    """Write the certificate as JSON, JUnit XML and HTML, to the paths that are not None."""
    from ldmrt.runtime.files.writing import write_atomically

    if as_json is not None:
        with write_atomically(as_json) as file:
            file.write(json.dumps(certificate.to_json(), indent=2).encode())
    if junit is not None:
        from ldmrt.tools.reports.junit import to_junit

        with write_atomically(junit) as file:
            file.write(to_junit(certificate, measured))
    if html is not None and reference is not None:
        from ldmrt.tools.reports.certificate_html import Pair, write_report

        pairs = []
        for comparison in measured:
            if comparison.images is not None:
                shown = (images[..., :3] for images in (reference.trajectory.images, comparison.images))
                sides = zip(comparison.pictures, *shown, strict=True)
                pairs += [Pair(comparison.backend, image.prompt, image.seed, *pixels) for image, *pixels in sides]
        write_report(html, certificate, pairs)
