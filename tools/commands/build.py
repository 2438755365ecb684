"""`ldmrt build`: engines of a bundle for NVIDIA GPUs."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldmrt.runtime.pipeline.step_capacity import STEPS
from ldmrt.tools.console.outputs import check_output
from ldmrt.tools.options.common import Choice

if TYPE_CHECKING:
    from ldmrt.export.engines.build import Built, Step
    from ldmrt.export.engines.profiles import Wanted
    from ldmrt.runtime import Bundle

BACKENDS = ["tensorrt", "tensorrt-rtx"]


def of_profile(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say for which images engines are."""
    options = (
        click.option("--sizes", help="Images, WIDTHxHEIGHT: 512x512,768x512, or a range, 512-1024x512-1024; the "
                     "model's own size by default."),
        click.option("--batch", default="1", show_default=True, help="Images at once, such as 1-4 or 1,4."),
        click.option("--guidance", type=Choice(["on", "off", "any"]), default="on", show_default=True,
                     help="It doubles the U-Net's rows; any builds for both."),
        click.option("--components", "only", help="Only these, such as unet,vae_decoder."),
        click.option("--folded", is_flag=True, help="Also the folded step, which runs a sampler's row as one call."),
        click.option("--steps", default=STEPS, show_default=True, help="Of any sampler, at most, by the folded step."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--backend", type=Choice(BACKENDS), default="tensorrt-rtx", show_default=True, help="The library that builds."
)
@click.option("--target", default="this", show_default=True, help="GPUs, such as sm89,sm120; portable; this machine's.")
@of_profile
@click.option("--refit", is_flag=True, help="Keep the weights replaceable, for LoRA: TensorRT alone.")
@click.option("--verify/--no-verify", default=True, help="Whether to run at last what was built.")
def build(
    bundle: Path, backend: str, target: str, sizes: str | None, batch: str, guidance: str, only: str | None,
    folded: bool, steps: int, refit: bool, verify: bool,
) -> None:  # fmt: skip
    """Build engines of BUNDLE, one a component and GPU, and keep them in it. TensorRT-RTX builds for any GPU on a
    machine that has none; TensorRT builds on the GPU itself.

    With --folded also one of the U-Net that computes guidance and the sampler's row: an image is then one launch a
    row. It holds the weights once more; the U-Net's own engine, which --components can leave out, runs what is not
    linear.

    An engine whose graph, weights, precision, version, GPU and profile are the same is reused, and a build that was
    stopped goes on with the next engine. `ldmrt plan` says beforehand what they take.

    What was built is then held to the bundle's certificate, as `ldmrt verify BUNDLE` does, where this machine can run
    it; where it cannot, what the engines were made of is. Exit code 1 where it differs.

    Example: ldmrt build out/emoji64 --target sm89,portable --sizes 64x64 --batch 1-4
    """
    from ldmrt.export.engines import compiler as trt
    from ldmrt.export.engines.arithmetic import check_arithmetic
    from ldmrt.export.engines.build import Built, decide, summary
    from ldmrt.export.engines.build import build as built
    from ldmrt.export.engines.memory import check_room, predict
    from ldmrt.export.engines.profiles import recipes
    from ldmrt.runtime import Bundle
    from ldmrt.runtime.host import megabytes
    from ldmrt.tools.console.progress import console

    opened = Bundle.open(bundle)
    check_output(bundle, "engines", folder=True)
    wanted, graphs = read(opened, sizes, batch, guidance, steps), chosen(opened, only, folded)
    flags = (trt.REFIT,) if refit else ()
    version, targets = trt.version(backend), targets_of(target)
    trt.check_targets(backend, targets, flags)
    wished = recipes(opened, wanted, backend=backend, version=version, targets=targets, flags=flags, graphs=graphs)
    check_arithmetic(opened, wished)
    decisions = decide(bundle, wished)
    missing = {one.recipe.key: predict(opened, one.recipe) for one in decisions if one.there is None}
    check_room(opened, missing.values())
    console.print(summary(decisions), highlight=False, soft_wrap=True)
    for done in watched(built(opened, decisions)):
        if isinstance(done, Built) and not done.reused:
            took, before = done.engine.measured, missing[done.recipe.key]
            console.print(
                f"{done.engine.folder.name}: {done.seconds:.1f} s, {megabytes(done.engine.size)}"
                f", scratch {megabytes(took['scratch'])} (predicted {megabytes(before.scratch)})"
                f", build peak {megabytes(took['build_peak'] or 0)} (predicted {megabytes(before.build)})",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
    click.echo(bundle)
    if verify and missing:
        prove(opened, backend)


def prove(bundle: "Bundle", backend: str) -> None:
    """Hold what was built to what the checkpoint computed; where it cannot run, the ONNX files that it was made of."""
    from ldmrt.runtime import LdmrtError
    from ldmrt.runtime.backends.registry import here
    from ldmrt.runtime.bundle.engines.targets import BACKENDS
    from ldmrt.tools.console.progress import console

    from .verify import replay

    if bundle.certificate is None:
        hint = f"ldmrt verify {bundle.path} --against CHECKPOINT --store"
        console.print(f"not verified: {bundle.doubts[0]}; next: {hint}", highlight=False, soft_wrap=True)
        return
    if doubts := bundle.doubts:
        click.secho(f"made of what does not hold: {doubts[0]}", fg="red", err=True)
        sys.exit(1)
    try:
        able = here(bundle)
    except LdmrtError as error:
        console.print(f"not verified: {error.problem}; next: {error.hint}", highlight=False, soft_wrap=True)
        return
    if backend not in able:
        said = f"the engines were built but not run: {BACKENDS[backend]} cannot run here. What they were made of:"
        console.print(said, highlight=False, soft_wrap=True)
    replay(bundle, (backend,) if backend in able else able)


def read(bundle: "Bundle", sizes: str | None, batch: str, guidance: str, steps: int) -> "Wanted":
    """Read the options of sizes, batches and guidance."""
    from ldmrt.export.engines.profiles import Wanted

    return Wanted.read(sizes, batch, guidance, bundle.shape.size, steps)


def targets_of(words: str) -> list[str]:
    """ "sm89,this" to the names of GPUs."""
    from ldmrt.runtime.backends.gpu import compute_capability

    names = [word.strip().lower() for word in words.split(",")]
    return list(dict.fromkeys(compute_capability() if name == "this" else name for name in names))


def chosen(bundle: "Bundle", only: str | None, folded: bool) -> list[str]:
    """The graphs that engines were asked for of."""
    from ldmrt.runtime import LdmrtError
    from ldmrt.runtime.bundle.bundle import STEP
    from ldmrt.runtime.nearest import suggestion

    names = list(bundle.components) if only is None else [name.strip() for name in only.split(",")]
    if unknown := [name for name in names if name not in bundle.components]:
        problem = f"no component {unknown[0]!r}{suggestion(unknown[0], bundle.components)}"
        raise LdmrtError("--components", problem, expected=", ".join(bundle.components))
    if folded and STEP not in bundle.graphs:
        problem, hint = f"{bundle.path} has no folded step", "ldmrt export CHECKPOINT BUNDLE, without controls"
        raise LdmrtError("--folded", problem, hint=hint)
    return [name for name in bundle.graphs if name in names or (folded and name == STEP)]


def watched(events: "Iterator[Step | Built]") -> "Iterator[Step | Built]":
    """Pass events on and show the phase of the build on a terminal."""
    from ldmrt.export.engines.build import Step
    from ldmrt.tools.console.progress import console

    with console.status("building") as status:
        for event in events:
            if isinstance(event, Step):
                what = f"{event.recipe.component} for {event.recipe.target}"
                status.update(f"{what}: {event.phase.lower()}, {event.done:.0%}")
            yield event
