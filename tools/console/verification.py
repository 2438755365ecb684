"""A bundle measured and shown on a terminal, for the commands that verify, export and build."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import click

from ldmrt.tools.options.checkpoint import CheckpointOptions

if TYPE_CHECKING:
    from ldmrt.runtime.bundle.bundle import Bundle
if TYPE_CHECKING:
    from rich.text import Text

    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.bundle.certificate import Certificate
    from ldmrt.runtime.bundle.recording import Recording
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.parity.compare import Comparison
    from ldmrt.runtime.pipeline.pipeline import Pipeline


PROMPT = "a red apple, noto style, blue background"


def certify_new(bundle: "Bundle", source: CheckpointOptions) -> None:
    """Measure a bundle that was just made, and keep the certificate; exit code 1 where it differs."""
    from ldmrt.export.components.torch_pipeline import torch_pipeline
    from ldmrt.export.parity.store import store
    from ldmrt.export.precision.policy import apply_precisions, islands, precisions
    from ldmrt.runtime.backends.ort.engine import available
    from ldmrt.runtime.bundle.graphs import NOT_RUN
    from ldmrt.runtime.parity.compare import certify

    origin, reference = record_checkpoint(bundle, source, PROMPT)
    openers, refused = runnable(bundle, available())
    if not openers:
        click.echo(f"{'; '.join(refused)}: checked, not run; PyTorch is measured in its place", err=True)
        openers = {
            NOT_RUN: lambda: torch_pipeline(apply_precisions(source.load, precisions(bundle), islands(bundle))[0])
        }
    made = certify(list(compare_and_show(bundle, reference, openers, aside=True)), bundle, reference, origin)
    store(bundle, made, reference)
    conclude(made)


def replay(bundle: "Bundle", backends: tuple[str, ...]) -> None:
    """Hold backends to what the certificate stored; exit code 1 where one differs."""
    from ldmrt.runtime.parity.compare import certify

    openers, refused = runnable(bundle, backends)
    for line in refused:
        click.echo(line, err=True)
    if openers:
        reference = bundle.reference
        measured = list(compare_and_show(bundle, reference, openers, aside=True))
        conclude(certify(measured, bundle, reference))
        for error in unmeasured(bundle, measured, reference):
            click.echo(error, err=True)


def unmeasured(bundle: "Bundle", measured: "list[Comparison]", reference: "Recording") -> "list[LdmrtError]":
    """An error for each backend of which no network was measured: its engines are for other sizes than the image."""
    from ldmrt.runtime.errors import LdmrtError

    size, ran = "{width}x{height}".format(**reference.trajectory.options), {one.backend for one in measured if one.ran}
    other = f"ldmrt verify {bundle.path} --against CHECKPOINT --side PIXELS --store"
    return [
        LdmrtError(
            "verify",
            f"nothing of {name} could be measured",
            hint=f"ldmrt build {bundle.path} --backend {name} --sizes {size}, or {other}",
        )
        for name in dict.fromkeys(one.backend for one in measured)
        if name not in ran
    ]


def runnable(bundle: "Bundle", backends: tuple[str, ...]) -> tuple[dict[str, "Callable[[], Pipeline]"], list[str]]:
    """How to open the bundle on each backend that can run it, and what the others lack."""
    from ldmrt.runtime.backends.registry import unsupported_precision
    from ldmrt.runtime.pipeline.pipeline import open_pipeline

    openers, refused = dict[str, "Callable[[], Pipeline]"](), list[str]()
    for backend in backends:
        opened = open_pipeline(bundle.path, backend, check=False)
        if why := unsupported_precision(bundle, opened.engines):
            refused.append(f"{backend} cannot run {why}")
        else:
            openers[backend] = partial(open_pipeline, bundle.path, backend, check=False)
        opened.close()
    return openers, refused


def conclude(made: "Certificate") -> None:
    """Say what was left out and what is wrong, and exit where something is."""
    for line in made.gaps:
        click.secho(f"skipped: {line}", fg="yellow", err=True)
    compare_and_show = made.failures[:20]
    for line in compare_and_show:
        click.secho(line, fg="red", err=True)
    if more := len(made.failures) - len(compare_and_show):
        click.secho(f"and {more} more", fg="red", err=True)
    if made.culprit:
        click.secho(f"it began with: {made.culprit}", fg="red", err=True)
    if not made.within:
        sys.exit(1)


def record_checkpoint(
    bundle: "Bundle", source: CheckpointOptions, prompt: str, seed: int = 0, side: int | None = None
) -> "tuple[list[str], Recording]":
    """Find what of the bundle is not of the checkpoint, and what the checkpoint computes, in float32. Its networks are
    gone when this returns: two copies of a model may be more than a machine holds.
    """
    import torch

    from ldmrt.export.parity.origin import other_origin
    from ldmrt.export.parity.record import record
    from ldmrt.export.precision.policy import apply_precisions, islands, precisions

    from .progress import console

    with console.status("the checkpoint, with PyTorch"):
        origin = []
        if bundle.manifest:
            origin = other_origin(bundle, apply_precisions(source.load, precisions(bundle), islands(bundle))[0])
        return origin, record(source.load({"": torch.float32})[0], prompt, seed=seed, side=side)


def compare_and_show(
    bundle: "Bundle", reference: "Recording", openers: "Mapping[str, Callable[[], Pipeline]]", *, aside: bool = False
) -> "Iterator[Comparison]":
    """Measure, show progress, then a table: on the standard output, or `aside` on the other."""
    from ldmrt.runtime.parity.compare import compare
    from ldmrt.runtime.parity.tolerances import tolerances
    from ldmrt.tools.console import tables

    from .progress import console

    rows: list[tuple[tables.Cell, ...]] = []
    begin, limits = time.perf_counter(), tolerances(bundle)
    with console.status("comparing") as status:
        for backend, opened in openers.items():
            pipeline, seen = opened(), set[str]()
            for one in compare(pipeline, backend, reference, limits):
                seconds, begin = time.perf_counter() - begin, time.perf_counter()
                rows.append((one.what, backend, *one.summary, f"{seconds:.1f} s", verdict(one)))
                seen.add(one.what)
                status.update(f"compared {one.what}")
                yield replace(one, seconds=seconds)
            pipeline.close()
            alone = [name for name in bundle.components if name not in seen]
            rows += [(name, backend, f"not alone: by {covered_by(name)}", "", "", "") for name in alone]
    tables.show(("component", "backend", "largest difference", "tolerance", "time", ""), rows, stderr=aside)
    said = "differences are relative to the largest value of PyTorch's float32 output; dB is the picture's PSNR"
    click.echo(said, err=aside)


def verdict(one: "Comparison") -> "Text":
    """The last cell of a row."""
    from rich.text import Text

    word = "stated" if one.costs else "FAILED" if not one.within else "ok" if one.summary[1] else ""
    left = f" {len(one.left_out)} skipped" if one.left_out else ""
    style = "red" if not one.within else "yellow" if left else "green" if word == "ok" else ""
    return Text(word + left, style=style)


def covered_by(component: str) -> str:
    """Name what measures a component of which nothing is stored but what follows from it."""
    from ldmrt.runtime.bundle.graphs import DECODER, DECODER_FP32

    return {DECODER: "the picture", DECODER_FP32: f"the picture by {DECODER_FP32}"}.get(component, "rows and picture")


def verify_built(bundle: "Bundle", backend: str) -> None:
    """Hold what was built to what the checkpoint computed; where it cannot run, the ONNX files that it was made of."""
    from ldmrt.runtime.backends.registry import available_backends
    from ldmrt.runtime.bundle.engines.targets import BACKENDS
    from ldmrt.runtime.errors import LdmrtError

    from .progress import console

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
        able = available_backends(bundle)
    except LdmrtError as error:
        console.print(f"not verified: {error.problem}; next: {error.hint}", highlight=False, soft_wrap=True)
        return
    if backend not in able:
        said = f"the engines were built but not run: {BACKENDS[backend]} cannot run here. What they were made of:"
        console.print(said, highlight=False, soft_wrap=True)
    replay(bundle, (backend,) if backend in able else able)
