"""`ldmrt verify`: a bundle against its checkpoint, or against what its certificate stored of it."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ldmrt.tools.console.outputs import Output, check_output
from ldmrt.tools.options.checkpoint import Reading, of_checkpoint

if TYPE_CHECKING:
    from rich.text import Text

    from ldmrt.runtime import Bundle, Certificate, LdmrtError, Pipeline
    from ldmrt.runtime.bundle.recording import Reference
    from ldmrt.runtime.parity.compare import Checked

PROMPT = "a red apple, noto style, blue background"
FILE = Output()


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--against", "checkpoint", help="The checkpoint: a folder, a file or OWNER/NAME.")
@of_checkpoint
@click.option("--prompt", default=PROMPT, show_default=True, help="Of the image that both draw.")
@click.option("--seed", default=0, show_default=True, help="Of that image's noise.")
@click.option("--side", type=click.IntRange(1), help="Of that image, in pixels, where engines are for one size; "
              "the model's own by default, and no more than 256.")  # fmt: skip
@click.option("--backend", "backends", multiple=True, help="Only these; all that can run here by default.")
@click.option("--store", is_flag=True, help="Keep the certificate in the bundle.")
@click.option("--json", "as_json", type=FILE, help="Write the certificate here.")
@click.option("--junit", type=FILE, help="Write it as JUnit XML, which CI services show.")
@click.option("--html", type=FILE, help="Write a page with images, one file.")
@click.option("--bisect", "bisected", metavar="COMPONENT", help="Compare its modules too: where did it begin?")
def verify(
    source: Reading, bundle: Path, prompt: str, seed: int, side: int | None, backends: tuple[str, ...], store: bool,
    as_json: Path | None, junit: Path | None, html: Path | None, bisected: str | None,
) -> None:  # fmt: skip
    """Run BUNDLE and its checkpoint side by side: every component on the same inputs, real ones and corners; every row
    from the checkpoint's latents and from its own; one image from the same noise. Without --against, what the
    certificate stored is replayed, for which PyTorch is not needed. Engines that `ldmrt build` made for this GPU are
    measured too; cases of other shapes are left out of that, and named.

    Exit code 1 where a difference passes its tolerance, 2 where nothing could be measured.

    Example: ldmrt verify out/emoji64 --against model/pretrained/emoji64
    """
    from ldmrt.runtime import Bundle, LdmrtError
    from ldmrt.runtime.backends.auto import unused_engines
    from ldmrt.runtime.backends.registry import here
    from ldmrt.runtime.errors import printable
    from ldmrt.runtime.nearest import suggestion
    from ldmrt.runtime.parity.compare import gather

    if source.checkpoint is None:
        refuse_what_needs_a_checkpoint(click.get_current_context())
    opened = Bundle.open(bundle)
    if store:
        check_output(bundle, "--store", folder=True)
    if bisected is not None and bisected not in opened.components:
        problem = f"no component {bisected!r}{suggestion(bisected, opened.components)}"
        raise LdmrtError("verify", problem, expected=", ".join(opened.components))
    openers, refused = runnable(opened, backends or here(opened))
    if not openers:
        hint = "where a backend computes in bfloat16, or export with --precision fp16"
        raise LdmrtError("verify", "could not measure", found="; ".join(refused), hint=hint)
    unused = "" if backends else unused_engines(opened)
    for line in [*refused, *([f"not measured: {unused}"] if unused else [])]:
        click.echo(line, err=True)
    if source.checkpoint is not None:
        origin, reference = recorded(opened, source, prompt, seed, side)
    else:
        origin, reference = [], opened.reference
        for line in filter(None, (*opened.doubts, opened.uncovered)):
            click.echo(printable(line), err=True)
    measured = list(shown(opened, reference, openers))
    made = gather(measured, opened, reference, origin)
    if store:
        from ldmrt.export.parity.store import store as keep

        keep(opened, made, reference)
    write(made, measured, reference, as_json, junit, html)
    if bisected is not None:
        click.echo(modules(opened, source, reference, bisected))
    conclude(made)
    idle = unmeasured(opened, measured, reference)
    if idle and (backends or len(idle) == len(openers)):
        raise idle[0]


def refuse_what_needs_a_checkpoint(context: click.Context) -> None:
    """Raise an `LdmrtError` for the first option that was given and is of no use without --against."""
    from ldmrt.runtime import LdmrtError

    needy = {"prompt", "seed", "side", "store", "bisected", *(one.name for one in fields(Reading))} - {"checkpoint"}
    for option in context.command.params:
        if option.name in needy and context.get_parameter_source(option.name) is not ParameterSource.DEFAULT:
            problem = f"{option.opts[0]} without --against"
            hint = f"ldmrt verify {context.params['bundle']} --against CHECKPOINT"
            raise LdmrtError("verify", problem, expected="a checkpoint to measure against", hint=hint)


def modules(bundle: "Bundle", source: Reading, reference: "Reference", name: str) -> str:
    """A component compared module by module, on the middle one of its real calls."""
    import torch

    from ldmrt.export.components.table import components
    from ldmrt.export.parity.bisect import bisect
    from ldmrt.runtime.parity.tolerances import tolerances
    from ldmrt.runtime.pipeline.autoencoder.decode import DECODER, WIDE

    parts = components(source.load({"": torch.float32})[0])
    limit = tolerances(bundle)[name].limit
    graph, name = bundle.model(name), DECODER if name == WIDE else name  # PyTorch's is float32 anyway
    calls = [one for one in reference.cases if one.component == name and not one.name.startswith("batch")]
    call = calls[len(calls) // 2]
    return f"{call.name}: {bisect(parts[name], graph, call.inputs, tolerance=limit)}"


def certify(bundle: "Bundle", source: Reading) -> None:
    """Measure a bundle that was just made, and keep the certificate; exit code 1 where it differs."""
    from ldmrt.export.components.torch_pipeline import torch_pipeline
    from ldmrt.export.parity.store import store
    from ldmrt.export.precision.policy import islands, lower, precisions
    from ldmrt.runtime.backends.ort.engine import available
    from ldmrt.runtime.bundle.bundle import UNRUN
    from ldmrt.runtime.parity.compare import gather

    origin, reference = recorded(bundle, source, PROMPT)
    openers, refused = runnable(bundle, available())
    if not openers:
        click.echo(f"{'; '.join(refused)}: checked, not run; PyTorch is measured in its place", err=True)
        openers = {UNRUN: lambda: torch_pipeline(lower(source.load, precisions(bundle), islands(bundle))[0])}
    made = gather(list(shown(bundle, reference, openers, aside=True)), bundle, reference, origin)
    store(bundle, made, reference)
    conclude(made)


def replay(bundle: "Bundle", backends: tuple[str, ...]) -> None:
    """Hold backends to what the certificate stored; exit code 1 where one differs."""
    from ldmrt.runtime.parity.compare import gather

    openers, refused = runnable(bundle, backends)
    for line in refused:
        click.echo(line, err=True)
    if openers:
        reference = bundle.reference
        measured = list(shown(bundle, reference, openers, aside=True))
        conclude(gather(measured, bundle, reference))
        for error in unmeasured(bundle, measured, reference):
            click.echo(error, err=True)


def unmeasured(bundle: "Bundle", measured: "list[Checked]", reference: "Reference") -> "list[LdmrtError]":
    """An error for each backend of which no network was measured: its engines are for other sizes than the image."""
    from ldmrt.runtime import LdmrtError

    size, ran = "{width}x{height}".format(**reference.walk.options), {one.backend for one in measured if one.ran}
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
    from ldmrt.runtime import open as open_pipeline
    from ldmrt.runtime.backends.support import lacking

    openers, refused = dict[str, "Callable[[], Pipeline]"](), list[str]()
    for backend in backends:
        opened = open_pipeline(bundle.path, backend, check=False)
        if why := lacking(bundle, opened.engines):
            refused.append(f"{backend} cannot run {why}")
        else:
            openers[backend] = partial(open_pipeline, bundle.path, backend, check=False)
        opened.close()
    return openers, refused


def conclude(made: "Certificate") -> None:
    """Say what was left out and what is wrong, and exit where something is."""
    for line in made.gaps:
        click.secho(f"skipped: {line}", fg="yellow", err=True)
    shown = made.failures[:20]
    for line in shown:
        click.secho(line, fg="red", err=True)
    if more := len(made.failures) - len(shown):
        click.secho(f"and {more} more", fg="red", err=True)
    if made.culprit:
        click.secho(f"it began with: {made.culprit}", fg="red", err=True)
    if not made.within:
        sys.exit(1)


def recorded(
    bundle: "Bundle", source: Reading, prompt: str, seed: int = 0, side: int | None = None
) -> "tuple[list[str], Reference]":
    """Find what of the bundle is not of the checkpoint, and what the checkpoint computes, in float32. Its networks are
    gone when this returns: two copies of a model may be more than a machine holds.
    """
    import torch

    from ldmrt.export.parity.record import record
    from ldmrt.export.parity.store import other_origin
    from ldmrt.export.precision.policy import islands, lower, precisions
    from ldmrt.tools.console.progress import console

    with console.status("the checkpoint, with PyTorch"):
        origin = []
        if bundle.manifest:
            origin = other_origin(bundle, lower(source.load, precisions(bundle), islands(bundle))[0])
        return origin, record(source.load({"": torch.float32})[0], prompt, seed=seed, side=side)


def shown(
    bundle: "Bundle", reference: "Reference", openers: "Mapping[str, Callable[[], Pipeline]]", *, aside: bool = False
) -> "Iterator[Checked]":
    """Measure, show progress, then a table: on the standard output, or `aside` on the other."""
    from ldmrt.runtime.parity.compare import check
    from ldmrt.runtime.parity.tolerances import tolerances
    from ldmrt.tools.console import tables
    from ldmrt.tools.console.progress import console

    rows: list[tuple[tables.Cell, ...]] = []
    begin, limits = time.perf_counter(), tolerances(bundle)
    with console.status("comparing") as status:
        for backend, opened in openers.items():
            pipeline, seen = opened(), set[str]()
            for one in check(pipeline, backend, reference, limits):
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


def verdict(one: "Checked") -> "Text":
    """The last cell of a row."""
    from rich.text import Text

    word = "stated" if one.costs else "FAILED" if not one.within else "ok" if one.summary[1] else ""
    left = f" {len(one.left_out)} skipped" if one.left_out else ""
    style = "red" if not one.within else "yellow" if left else "green" if word == "ok" else ""
    return Text(word + left, style=style)


def covered_by(component: str) -> str:
    """Name what measures a component of which nothing is stored but what follows from it."""
    from ldmrt.runtime.pipeline.autoencoder.decode import DECODER, WIDE

    return {DECODER: "the picture", WIDE: f"the picture by {WIDE}"}.get(component, "rows and picture")


def write(
    made: "Certificate", measured: "list[Checked]", reference: "Reference", as_json: Path | None, junit: Path | None,
    html: Path | None,
) -> None:  # fmt: skip
    """The files that were asked for."""
    from ldmrt.runtime import write_atomically

    if as_json is not None:
        with write_atomically(as_json) as file:
            file.write(json.dumps(made.to_json(), indent=2).encode())
    if junit is not None:
        from ldmrt.tools.reports.junit import to_junit

        with write_atomically(junit) as file:
            file.write(to_junit(made, measured))
    if html is not None:
        from ldmrt.tools.reports.certificate_html import Pair, write_report

        pairs = []
        for one in measured:
            if one.images is not None:
                sides = zip(one.pictures, reference.walk.images, one.images, strict=True)
                pairs += [Pair(one.backend, like.prompt, like.seed, expected, found) for like, expected, found in sides]
        write_report(html, made, pairs)
