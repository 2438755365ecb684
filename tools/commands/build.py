"""Run `ldmrt build`: build TensorRT engines of a bundle."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldmrt.runtime.bundle.engines.targets import TITLES
from ldmrt.tools.console.outputs import Output, check_output
from ldmrt.tools.console.verification.measure import verify_built
from ldmrt.tools.options.common import Choice
from ldmrt.tools.options.engines import EngineOptions, engine_options, targets_of
from ldmrt.tools.options.stages import every_stage

if TYPE_CHECKING:
    from ldmrt.export.engines.build import Built, Step


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--backend",
    type=Choice(TITLES),
    default="tensorrt-rtx",
    show_default=True,
    help="Library that builds the engines.",
)
@click.option("--target", default="this", show_default=True, help="GPUs, such as sm89,sm120, portable or this.")
@engine_options
@click.option("--refit", is_flag=True, help="Keep the weights replaceable, for `ldmrt engines refit`; TensorRT only.")
@click.option(
    "--builder-level",
    type=click.IntRange(0, 5),
    help="How long kernels are searched for; TensorRT only.",
)
@click.option("--timing-cache", type=Output(), help="A file that keeps the kernels' timings; TensorRT only.")
@click.option("--verify/--no-verify", default=True, help="Whether to run the new engines and compare them.")
@every_stage(lambda options: options["engines"].chosen)
def build(
    bundle: Path,
    backend: str,
    target: str,
    engines: EngineOptions,
    refit: bool,
    builder_level: int | None,
    timing_cache: Path | None,
    verify: bool,
) -> None:
    """Build engines of BUNDLE, one per component and GPU, and store them in it.

    TensorRT-RTX builds for any GPU, also on a machine without one; TensorRT builds on the GPU itself.

    --folded also builds the fused step: the U-Net with guidance and the sampler's row, one launch per row. It holds the
    weights a second time. The U-Net's own engine, which --components can skip, runs what is not linear.

    An engine with the same graph, weights, precision, version, GPU and profile is reused, and a build that was stopped
    continues with the next engine. `ldmrt plan` predicts memory and disk space.

    New engines are compared with the bundle's recording, as by `ldmrt verify BUNDLE`; if this machine cannot run them,
    the ONNX files are. Exit code 1 if a difference exceeds its tolerance.

    Of a cascade engines of all stages are built, each for its model's own size; with --sizes, --components or --folded
    those of the first stage alone: another's are built in the folder of the stage.

    Example: ldmrt build out/emoji64 --target sm89,portable --sizes 64x64 --batch 1-4
    """
    from ldmrt.export.engines import compiler
    from ldmrt.export.engines.arithmetic import check_arithmetic
    from ldmrt.export.engines.build import Built, decide, summary
    from ldmrt.export.engines.build import build as build_engines
    from ldmrt.export.engines.engine_memory import check_memory, predict
    from ldmrt.export.engines.profiles import recipes
    from ldmrt.export.engines.timing_cache import TimingCache, check_timing_cache
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.bundle.engines.engine_key import BUILDER_LEVEL, REFIT
    from ldmrt.runtime.host import megabytes
    from ldmrt.tools.console.progress import console

    opened = Bundle.open(bundle)
    check_output(bundle, "engines", folder=True)
    wanted, graphs = engines.wanted(opened), engines.graphs(opened)
    flags = [*([REFIT] if refit else []), *engines.flags]
    flags += [] if builder_level is None else [f"{BUILDER_LEVEL}{builder_level}"]
    timings = None
    if timing_cache is not None:
        check_timing_cache(backend)
        timings = TimingCache(timing_cache)
    version, targets = compiler.version(backend), targets_of(target)
    compiler.check_targets(backend, targets, flags)
    wished = recipes(opened, wanted, backend=backend, version=version, targets=targets, flags=flags, graphs=graphs)
    check_arithmetic(opened, wished)
    decisions = decide(bundle, wished)
    missing = {d.recipe.key: predict(opened, d.recipe) for d in decisions if d.there is None}
    check_memory(opened, missing.values())
    console.print(summary(decisions), highlight=False, soft_wrap=True)
    for done in watched(build_engines(opened, decisions, partial(compiler.compile_engine, timings=timings))):
        if isinstance(done, Built) and not done.reused:
            measured, predicted = done.engine.measured, missing[done.recipe.key]
            console.print(
                f"{done.engine.folder.name}: {done.seconds:.1f} s, {megabytes(done.engine.size)}"
                f", scratch {megabytes(measured['scratch'])} (predicted {megabytes(predicted.scratch)})"
                f", build peak {megabytes(measured['build_peak'] or 0)} (predicted {megabytes(predicted.build)})",
                highlight=False,
                soft_wrap=True,
            )
    click.echo(bundle)
    if verify and missing:
        verify_built(opened, backend)


def watched(events: "Iterator[Step | Built]") -> "Iterator[Step | Built]":
    """Yield the events, and show the phase of the build on a terminal."""
    from ldmrt.export.engines.build import Step
    from ldmrt.tools.console.progress import console

    with console.status("building") as status:
        for event in events:
            if isinstance(event, Step):
                what = f"{event.recipe.component} for {event.recipe.target}"
                status.update(f"{what}: {event.phase.lower()}, {event.done:.0%}")
            yield event
