"""`ldmrt verify`: a bundle against its checkpoint, or against what its certificate stored of it."""

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ldmrt.tools.console.outputs import Output, check_output
from ldmrt.tools.console.verification import PROMPT, compare_and_show, conclude, record_checkpoint, runnable, unmeasured
from ldmrt.tools.options.checkpoint import CheckpointOptions, checkpoint_options

if TYPE_CHECKING:
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.bundle.certificate import Certificate
    from ldmrt.runtime.bundle.recording import Recording
    from ldmrt.runtime.parity.compare import Comparison

FILE = Output()


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--against", "checkpoint", help="The checkpoint: a folder, a file or OWNER/NAME.")
@checkpoint_options
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
    source: CheckpointOptions, bundle: Path, prompt: str, seed: int, side: int | None, backends: tuple[str, ...],
    store: bool, as_json: Path | None, junit: Path | None, html: Path | None, bisected: str | None,
) -> None:  # fmt: skip
    """Run BUNDLE and its checkpoint side by side: every component on the same inputs, real ones and corners; every row
    from the checkpoint's latents and from its own; one image from the same noise. Without --against, what the
    certificate stored is replayed, for which PyTorch is not needed. Engines that `ldmrt build` made for this GPU are
    measured too; cases of other shapes are left out of that, and named.

    Exit code 1 where a difference passes its tolerance, 2 where nothing could be measured.

    Example: ldmrt verify out/emoji64 --against model/pretrained/emoji64
    """
    from ldmrt.runtime.backends.auto import unused_engines
    from ldmrt.runtime.backends.registry import available_backends
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.errors import LdmrtError, printable
    from ldmrt.runtime.nearest import suggestion
    from ldmrt.runtime.parity.compare import certify

    if source.checkpoint is None:
        refuse_what_needs_a_checkpoint(click.get_current_context())
    opened = Bundle.open(bundle)
    if store:
        check_output(bundle, "--store", folder=True)
    if bisected is not None and bisected not in opened.components:
        problem = f"no component {bisected!r}{suggestion(bisected, opened.components)}"
        raise LdmrtError("verify", problem, expected=", ".join(opened.components))
    openers, refused = runnable(opened, backends or available_backends(opened))
    if not openers:
        hint = "where a backend computes in bfloat16, or export with --precision fp16"
        raise LdmrtError("verify", "could not measure", found="; ".join(refused), hint=hint)
    unused = "" if backends else unused_engines(opened)
    for line in [*refused, *([f"not measured: {unused}"] if unused else [])]:
        click.echo(line, err=True)
    if source.checkpoint is not None:
        origin, reference = record_checkpoint(opened, source, prompt, seed, side)
    else:
        origin, reference = [], opened.reference
        for line in filter(None, (*opened.certificate_issues, opened.uncovered)):
            click.echo(printable(line), err=True)
    measured = list(compare_and_show(opened, reference, openers))
    made = certify(measured, opened, reference, origin)
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
    from ldmrt.runtime.errors import LdmrtError

    needy = {"prompt", "seed", "side", "store", "bisected", *(one.name for one in fields(CheckpointOptions))} - {
        "checkpoint"
    }
    for option in context.command.params:
        if option.name in needy and context.get_parameter_source(option.name) is not ParameterSource.DEFAULT:
            problem = f"{option.opts[0]} without --against"
            hint = f"ldmrt verify {context.params['bundle']} --against CHECKPOINT"
            raise LdmrtError("verify", problem, expected="a checkpoint to measure against", hint=hint)


def modules(bundle: "Bundle", source: CheckpointOptions, reference: "Recording", name: str) -> str:
    """A component compared module by module, on the middle one of its real calls."""
    import torch

    from ldmrt.export.components.table import components
    from ldmrt.export.parity.bisect import bisect
    from ldmrt.runtime.bundle.graphs import DECODER, DECODER_FP32
    from ldmrt.runtime.parity.tolerances import tolerances

    parts = components(source.load({"": torch.float32})[0])
    limit = tolerances(bundle)[name].limit
    graph, name = bundle.model(name), DECODER if name == DECODER_FP32 else name  # PyTorch's is float32 anyway
    calls = [one for one in reference.cases if one.component == name and not one.name.startswith("batch")]
    call = calls[len(calls) // 2]
    return f"{call.name}: {bisect(parts[name], graph, call.inputs, tolerance=limit)}"


def write(
    made: "Certificate", measured: "list[Comparison]", reference: "Recording", as_json: Path | None, junit: Path | None,
    html: Path | None,
) -> None:  # fmt: skip
    """The files that were asked for."""
    from ldmrt.runtime.files.writing import write_atomically

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
                sides = zip(one.pictures, reference.trajectory.images, one.images, strict=True)
                pairs += [Pair(one.backend, like.prompt, like.seed, expected, found) for like, expected, found in sides]
        write_report(html, made, pairs)
