"""Measure a bundle and show the result, for the commands that verify, export, build and refit."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

import click

from ldmrt.tools.options.checkpoint import CheckpointOptions

from .narrow import gains
from .runnable import Runnable, runnable, short_of_memory

if TYPE_CHECKING:
    from rich.text import Text

    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.bundle.certificate import Certificate
    from ldmrt.runtime.bundle.recording import Recording
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.parity.compare import Comparison
    from ldmrt.runtime.pipeline.pipeline import Pipeline


PROMPT = "a red apple, noto style, blue background"
SHOWN = 20  # failures


def certify_new(bundle: "Bundle", source: CheckpointOptions, *, low_memory: bool = False) -> None:
    """Measure a new bundle against its checkpoint and store the certificate in it, with low memory where it has to be.

    Raises:
        SystemExit: A difference exceeds its tolerance; the exit code is 1.
    """
    from ldmrt.export.components.torch_pipeline import torch_pipeline
    from ldmrt.export.parity.store import store
    from ldmrt.export.precision.policy import apply_precisions, islands, precisions
    from ldmrt.runtime.backends.ort.engine import available
    from ldmrt.runtime.bundle.graphs import NOT_RUN
    from ldmrt.runtime.parity.certify import certify

    low_memory = low_memory or short_of_memory(bundle)
    origin, reference = record_checkpoint(bundle, source, PROMPT, low_memory=low_memory)
    able, refused = runnable(bundle, available(), low_memory=low_memory)
    if not able:
        click.echo(f"{'; '.join(refused)}: the graphs are checked but not run; PyTorch is measured instead", err=True)

        def in_pytorch() -> "Pipeline":
            return torch_pipeline(apply_precisions(source.load, precisions(bundle), islands(bundle))[0])

        able, low_memory = [Runnable(NOT_RUN, "fp32", in_pytorch)], False
    measured = list(compare_and_show(bundle, reference, able, stderr=True))
    certificate = certify(measured, bundle, reference, origin, low_memory=low_memory)
    store(bundle, certificate, reference)
    conclude(certificate)


def replay(bundle: "Bundle", backends: tuple[str, ...]) -> None:
    """Compare backends with the recording that the bundle's certificate names, without PyTorch.

    Raises:
        SystemExit: A difference exceeds its tolerance; the exit code is 1.
    """
    from ldmrt.runtime.parity.certify import certify

    able, refused = runnable(bundle, backends)
    for line in refused:
        click.echo(line, err=True)
    if able:
        reference = bundle.reference
        measured = list(compare_and_show(bundle, reference, able, stderr=True))
        conclude(certify(measured, bundle, reference))
        for error in unmeasured(bundle, measured, reference):
            click.echo(error, err=True)


def unmeasured(bundle: "Bundle", measured: "list[Comparison]", reference: "Recording") -> "list[LdmrtError]":
    """Return an error for each backend without any measured network, as its engines are for other image sizes."""
    from ldmrt.runtime.errors import LdmrtError

    size, ran = (
        "{width}x{height}".format(**reference.trajectory.options),
        {comparison.backend for comparison in measured if comparison.ran},
    )
    other = f"ldmrt verify {bundle.path} --against CHECKPOINT --side PIXELS --store"
    return [
        LdmrtError(
            "verify",
            f"nothing of {name} could be measured",
            hint=f"ldmrt build {bundle.path} --backend {name} --sizes {size}, or {other}",
        )
        for name in dict.fromkeys(comparison.backend for comparison in measured)
        if name not in ran
    ]


def conclude(certificate: "Certificate") -> None:
    """Print the skipped cases and the failures; exit with code 1 if there are failures."""
    for line in certificate.gaps:
        click.secho(f"skipped: {line}", fg="yellow", err=True)
    for line in certificate.failures[:SHOWN]:
        click.secho(line, fg="red", err=True)
    if (more := len(certificate.failures) - SHOWN) > 0:
        click.secho(f"and {more} more", fg="red", err=True)
    if certificate.culprit:
        click.secho(f"it began with: {certificate.culprit}", fg="red", err=True)
    if not certificate.within:
        sys.exit(1)


def as_exported(source: CheckpointOptions, bundle: "Bundle") -> CheckpointOptions:
    """Return the options with those that a bundle was exported with, where they are not given."""
    from ldmrt.runtime.pipeline.conditioning.prompts import ATTENTION_MASK

    prompt = bundle.stage.prompt
    if source.max_sequence_length is None and prompt is not None and "tokens" in prompt.settings:
        source = replace(source, max_sequence_length=int(prompt.setting("tokens")))
    if any(spec.name == ATTENTION_MASK for name in bundle.components for spec in bundle.specs(name)[0]):
        source = replace(source, long_prompts=True)
    return replace(source, skip_layers=bundle.stage.skipped_layers) if source.skip_layers is None else source


def record_checkpoint(
    bundle: "Bundle",
    source: CheckpointOptions,
    prompt: str,
    seed: int = 0,
    side: int | None = None,
    *,
    low_memory: bool = False,
) -> "tuple[list[str], Recording]":
    """Compare the origin of a bundle with a checkpoint, and record what the checkpoint computes in float32.

    The checkpoint's networks are freed before this returns, as a machine may not hold two copies of a model.

    Args:
        bundle: The bundle to be verified.
        source: The checkpoint and its options.
        prompt: Prompt of the image.
        seed: Seed of the image.
        side: Pixels along a side of the image; by default the model's own size, at most 256.
        low_memory: The weights of one module at a time are read and cast to float32, which takes longer.

    Returns:
        The differences of weights, graphs and configs, and the recording.

    Raises:
        LdmrtError: The bundle has a preview decoder, an IP-Adapter or a safety checker, and the options name none.
    """
    import torch

    from ldmrt.export.parity.origin import other_origin
    from ldmrt.export.parity.record import record
    from ldmrt.export.precision.policy import apply_precisions, islands, precisions
    from ldmrt.export.precision.streaming import streamed
    from ldmrt.model.weights.unread import leave_unread
    from ldmrt.runtime.bundle.graphs import SAFETY_CHECKER
    from ldmrt.runtime.bundle.stages import IMAGE_PROMPT
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.tools.console.progress import console

    if bundle.stage.preview is not None and source.preview_decoder is None:
        hint = "--preview-decoder FOLDER, the one that it was exported with"
        raise LdmrtError("verify", "the bundle has a preview decoder, and the checkpoint has none", hint=hint)
    if bundle.stage.source(IMAGE_PROMPT) is not None and source.ip_adapter is None:
        hint = "--ip-adapter FILE, the one that it was exported with"
        raise LdmrtError("verify", "the bundle has an IP-Adapter, and the checkpoint has none", hint=hint)
    if SAFETY_CHECKER in bundle.components and source.safety_checker is None:
        hint = "--safety-checker FOLDER, the one that it was exported with"
        raise LdmrtError("verify", "the bundle has a safety checker, and the checkpoint has none", hint=hint)
    source = as_exported(source, bundle)
    with console.status(f"running the checkpoint with PyTorch{', in low memory' if low_memory else ''}"):
        origin = []
        if bundle.manifest:
            cast_late = apply_precisions(source.load, precisions(bundle), islands(bundle), late=True)[0]
            origin = other_origin(bundle, cast_late)
            del cast_late
        if low_memory:
            with leave_unread():
                stored = source.load({"": None})[0]
            with streamed(stored) as parts:
                return origin, record(stored, prompt, seed=seed, side=side, parts=parts)
        return origin, record(source.load({"": torch.float32})[0], prompt, seed=seed, side=side)


def compare_and_show(
    bundle: "Bundle",
    reference: "Recording",
    able: Sequence[Runnable],
    *,
    stderr: bool = False,
) -> "Iterator[Comparison]":
    """Yield the comparisons of each backend with the recording; show progress, and a table at the end.

    The tolerances are those of the precision that a backend computes in. The table goes to the standard output, or with
    `stderr` to the standard error.
    """
    from ldmrt.runtime.parity.compare import compare
    from ldmrt.runtime.parity.tolerances import tolerances
    from ldmrt.tools.console import tables
    from ldmrt.tools.console.progress import console

    rows: list[tuple[tables.Cell, ...]] = []
    begin = time.perf_counter()
    with console.status("comparing") as status:
        for one in able:
            pipeline, backend, measured = one.open(), one.name, set[str]()
            compared = compare(pipeline, backend, reference, tolerances(bundle, one.compute))
            for comparison in chain(compared, gains(bundle, one, pipeline, reference)):
                seconds, begin = time.perf_counter() - begin, time.perf_counter()
                rows.append((comparison.what, backend, *comparison.summary, f"{seconds:.1f} s", verdict(comparison)))
                measured.add(comparison.what)
                status.update(f"compared {comparison.what}")
                yield replace(comparison, seconds=seconds)
            pipeline.close()
            others = [name for name in bundle.components if name not in measured]
            rows += [(name, backend, f"not alone: by {covered_by(name)}", "", "", "") for name in others]
    tables.show(("component", "backend", "largest difference", "tolerance", "time", ""), rows, stderr=stderr)
    units = "differences are relative to the largest value of PyTorch's float32 output; dB is the image's PSNR"
    click.echo(units, err=stderr)


def verdict(comparison: "Comparison") -> "Text":
    """Return the last cell of a row: ok or FAILED, and how many cases were skipped."""
    from rich.text import Text

    within = comparison.within
    word = (
        "stated"
        if comparison.costs or comparison.times
        else "FAILED"
        if not within
        else "ok"
        if comparison.summary[1]
        else ""
    )
    skipped = f" {len(comparison.left_out)} skipped" if comparison.left_out else ""
    style = "red" if not within else "yellow" if skipped else "green" if word == "ok" else ""
    return Text(word + skipped, style=style)


def covered_by(component: str) -> str:
    """Name the measurement that covers a component whose own outputs are not recorded."""
    from ldmrt.runtime.bundle.graphs import DECODER, DECODER_FP32

    return {DECODER: "the image", DECODER_FP32: f"the image by {DECODER_FP32}"}.get(component, "rows and image")


def verify_built(bundle: "Bundle", backend: str) -> None:
    """Compare new engines with the bundle's recording; where they cannot run, the ONNX files that they were built from.

    A bundle without a certificate is only reported.

    Raises:
        SystemExit: A difference exceeds its tolerance, or the certificate is of other files; the exit code is 1.
    """
    from ldmrt.runtime.backends.registry import available_backends
    from ldmrt.runtime.bundle.engines.targets import TITLES
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.tools.console.progress import console

    if bundle.certificate is None:
        hint = f"ldmrt verify {bundle.path} --against CHECKPOINT --store"
        console.print(f"not verified: {bundle.certificate_issues[0]}; next: {hint}", highlight=False, soft_wrap=True)
        return
    if issues := bundle.certificate_issues:
        click.secho(
            f"not verified: the bundle's certificate does not match its files ({issues[0]})", fg="red", err=True
        )
        sys.exit(1)
    try:
        available = available_backends(bundle)
    except LdmrtError as error:
        console.print(f"not verified: {error.problem}; next: {error.hint}", highlight=False, soft_wrap=True)
        return
    if backend not in available:
        notice = f"the engines were built but not run: {TITLES[backend]} cannot run here. Their ONNX files:"
        console.print(notice, highlight=False, soft_wrap=True)
    replay(bundle, (backend,) if backend in available else available)
