"""Run `ldmrt batch`: make the images of a file of prompts, each line once, and go on where it was stopped."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.options.checkpoint import WeighedFile
from ldmrt.tools.options.cluster import with_ray
from ldmrt.tools.options.drawing import BATCH, HOW, with_opening, with_options
from ldmrt.tools.options.loras import LORA, load_loras, refuse_with_ray, stated_loras, weights_of
from ldmrt.tools.options.to_request import flags, request_of

if TYPE_CHECKING:
    from ldmrt.runtime.files.reading import JsonObject
    from ldmrt.runtime.pipeline.pipeline import Pipeline
    from ldmrt.runtime.pipeline.request.request import Request
    from ldmrt.serve.batch.index import Entry, Index

SOME_FAILED = 1  # the exit code
NO_CHANGE = (
    "threads",
    "keep_optimized",
    "batch",
    "on_ray",
    "replicas",
    "cpus",
    "gpus",
)  # options that a run may go on with others of


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompts", type=click.Path(path_type=Path))
@click.argument("out", type=Output(folder=True))
@BATCH
@with_options(HOW)
@LORA
@with_ray
@with_opening
def batch(
    bundle: Path,
    prompts: Path,
    out: Path,
    batch: int | None,
    opening: dict[str, Any],
    ray: dict[str, Any] | None,
    scheduler_config: Path | None,
    settings: "JsonObject",
    loras: tuple[WeighedFile, ...],
    **options: Any,
) -> None:
    """Make the images of every line of PROMPTS with BUNDLE, in the folder OUT.

    A line of a .txt file is a prompt. A line of a .jsonl file is a JSON object with the words of `ldmrt generate`'s
    options, such as {"prompt": "a red apple", "steps": 30, "seed": 7, "count": 2}; what it does not state is as the
    options say. A line without a seed counts up from --seed, -n for each line before it.

    OUT/index.jsonl has a line for each, in the same order, with its files and seeds; OUT/failed.jsonl has those that
    failed, to be mended and drawn by another run. The same command goes on where it was stopped or killed.

    The exit code is 1 where lines failed.

    Example: ldmrt batch out/emoji64 prompts.jsonl out/emoji --steps 20
    """
    from ldmrt.runtime.bundle.hub import local_bundle
    from ldmrt.runtime.optional import unavailable
    from ldmrt.runtime.pipeline.infotext.record import digest_of_bundle
    from ldmrt.runtime.pipeline.opening import open_pipeline
    from ldmrt.runtime.samplers.settings import read_scheduler
    from ldmrt.serve.batch.folder import Stated, locked, remove_after
    from ldmrt.serve.batch.index import Index
    from ldmrt.serve.batch.lines import check_file, is_json, read_lines
    from ldmrt.serve.batch.requests import Reader
    from ldmrt.serve.batch.run import Run, service_of
    from ldmrt.tools.console.drawing.batch_images import save_line
    from ldmrt.tools.console.drawing.making import Making
    from ldmrt.tools.console.drawing.metadata import ends_of
    from ldmrt.tools.console.progress import console, watched
    from ldmrt.tools.console.training.signals import end_by, listening

    if ray is not None:
        try:
            from ldmrt.serve.ray.batch import Drawing, RayRun
            from ldmrt.serve.ray.bundles import path_everywhere
            from ldmrt.serve.ray.cluster import joined
            from ldmrt.serve.ray.scale import Scale
        except ImportError as error:
            raise unavailable(error, "batch") from None
        scale = Scale.read(**ray)
    refuse_with_ray(loras, ray)
    options |= {"scheduler_settings": settings, "loras": weights_of(loras)}
    example = request_of(options)
    config = None if scheduler_config is None else read_scheduler(scheduler_config)
    count, reader = check_file(prompts), Reader(is_json(prompts), options, Path.cwd())
    given = click.get_current_context().params
    stated = {flag: given[name] for name, flag in flags().items() if name not in NO_CHANGE}
    stated["--lora"] = stated_loras(loras)
    run_of = Stated(bundle.name, digest_of_bundle(local_bundle(bundle)), {**stated, "--scheduler-config": config})
    index, announced = Index(out, reader), False

    def stopping() -> bool:
        """Tell whether a signal to stop has come, and say so once: what is being drawn may take a while."""
        nonlocal announced
        if signals.stop is not None and not announced:
            announced = True
            console.print("stopping: what is being drawn is finished first", highlight=False)
        return signals.stop is not None

    with contextlib.ExitStack() as opened:
        opened.enter_context(locked(out))
        signals = opened.enter_context(listening())
        if run_of.check(out):
            index.resume(read_lines(prompts, count), prompts)
        begin, start = time.perf_counter(), index.last
        if start < count:
            pipeline = opened.enter_context(open_pipeline(bundle, scheduler=config, **opening))
            loaded = load_loras(pipeline, loras)
            check_options(pipeline, example, opens=ray is None)
            making = Making.of(bundle, ends_of(pipeline, example)[0], opening, scheduler_config=config, loras=loaded)
            save = partial(save_line, out, making, pipeline)
            run: Callable[..., Iterator[Entry]]
            if ray is not None:
                drawing = Drawing(
                    path_everywhere(bundle), scale.opening({**opening, "scheduler": config}), reader, example, batch
                )
                opened.enter_context(joined())
                run = RayRun(drawing, scale, count - start, save)
            remove_after(out, start)
            run_of.write(out)
            if ray is None:
                service, room = service_of(bundle.name, pipeline, example, batch)
                run = Run(service, reader, save, window=room)
            left = (line for line in read_lines(prompts, count) if line.number > start)
            with index:
                entries = run(left, index, stopping)
                for _ in watched(entries, count, lambda entry: f"line {entry.line}", start=start):
                    pass
    report(index, start, count, time.perf_counter() - begin, out)
    if signals.stop is not None and index.last < count:
        end_by(signals.stop)
    if index.counts["failed"]:
        sys.exit(SOME_FAILED)


def check_options(pipeline: "Pipeline", example: "Request", *, opens: bool = True) -> None:
    """Refuse what would fail every line: a U-Net that cannot be opened, a sampler or a size that it does not have.

    Without `opens` the U-Net is opened on other machines, and not here.

    Raises:
        InvalidRequest: The model cannot do what the options ask for.
        LdmrtError: The U-Net cannot be opened here.
    """
    if opens:
        pipeline.engines[pipeline.stage.network]
    pipeline.rows(replace(example, prompt=""))  # each line has its own
    stage = pipeline.stage
    example.size(stage.own, max(stage.space.unit, stage.enlarges))


def report(index: "Index", start: int, count: int, seconds: float, out: Path) -> None:
    """Say how many lines were drawn and have failed, and where they are."""
    from ldmrt.serve.batch.index import FAILED, INDEX
    from ldmrt.tools.console.progress import console

    of = f"{index.last} of {count} lines" if index.last < count else f"{count} lines"
    before = f", {start} of them before" if start else ""
    counts = index.counts
    blank = f", {counts['blank']} blank" if counts["blank"] else ""
    console.print(
        f"{of}{before}: {counts['done']} drawn, {counts['failed']} failed{blank}; "
        f"{counts['images']} images; {seconds:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
    click.echo(out / INDEX)
    if counts["failed"]:
        click.echo(out / FAILED)
