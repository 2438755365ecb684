"""Run `ldmrt bench`: measure where the time of an image goes."""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.options.common import COMPUTE, THREADS
from ldmrt.tools.options.to_request import request_of

if TYPE_CHECKING:
    from ldmrt.runtime.files.reading import JsonObject
    from ldmrt.runtime.pipeline.pipeline import Pipeline
    from ldmrt.runtime.pipeline.request.request import Request
    from ldmrt.runtime.tensors import Array, Arrays, Engine


@dataclass(frozen=True)
class Spread:
    """The times of one stage, in seconds."""

    stage: str
    calls: int
    p50: float
    p95: float
    share: float  # of all images' time

    @classmethod
    def of(cls, stage: str, times: list[float], whole: float) -> "Spread":
        """Summarise the times of all calls; `whole` is the time of all images."""
        ordered = sorted(times)
        p95 = ordered[round(0.95 * (len(times) - 1))]
        return cls(stage, len(times), statistics.median(times), p95, sum(times) / whole)


class Timed:
    """An engine that measures how long its calls take."""

    def __init__(self, engine: "Engine", times: list[float]) -> None:
        """Wrap an engine; each call appends its seconds to `times`."""
        self._engine, self._times = engine, times
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def __call__(self, **arrays: "Array") -> "Arrays":
        """Run the engine and note the time."""
        begin = time.perf_counter()
        out = self._engine(**arrays)
        self._times.append(time.perf_counter() - begin)
        return out

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()


def stages(pipeline: "Pipeline", request: "Request", count: int) -> list[Spread]:
    """Make `count` images one by one, after a first one that is not measured.

    Each has its own prompt, as a prompt that was encoded before is not encoded again.

    Returns:
        The times of each network's calls, of everything between them, and of whole images.
    """
    from ldmrt.runtime.backends.lazy_engines import LazyEngines

    times: dict[str, list[float]] = {name: [] for name in pipeline.engines}
    engines = LazyEngines({name: partial(_timed, pipeline.engines, name, times[name]) for name in pipeline.engines})
    timed = replace(pipeline, engines=engines)
    timed.generate(request)
    for calls in times.values():
        calls.clear()
    whole, between = [], []
    for seed in range(count):
        before = sum(map(sum, times.values()))
        begin = time.perf_counter()
        timed.generate(_another(request, seed))
        whole.append(time.perf_counter() - begin)
        between.append(whole[-1] - (sum(map(sum, times.values())) - before))
    total = sum(whole)
    rows = [Spread.of(name, calls, total) for name, calls in times.items() if calls]
    return [*rows, Spread.of("outside networks", between, total), Spread.of("picture", whole, total)]


def _another(request: "Request", seed: int, turn: str = "") -> "Request":
    """Return a request with another seed and, where it has a prompt, another prompt."""
    prompt = None if request.prompt is None else f"{request.prompt} {turn}{seed}"
    return replace(request, prompt=prompt, seed=seed)


def _timed(engines: "Mapping[str, Engine]", name: str, times: list[float]) -> Timed:
    """Open an engine, when it is first used, and wrap it."""
    return Timed(engines[name], times)


def overlapped(pipeline: "Pipeline", request: "Request", count: int) -> float:
    """Measure the time of `count` requests that overlap, relative to that of as many one by one.

    Each has its own prompt. The result is the median of three turns.
    """
    ways: list[Callable[[list[Request]], Iterable[object]]] = [
        lambda requests: map(pipeline.generate, requests),
        pipeline.draw,
    ]
    ratios = []
    for turn in range(3):
        seconds = []
        for way, draw in enumerate(ways):
            requests = [_another(request, seed, f"{turn} {way} ") for seed in range(count)]
            begin = time.perf_counter()
            for _ in draw(requests):
                pass
            seconds.append(time.perf_counter() - begin)
        ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios)


def cold(bundle: Path, prompt: str | None, words: Mapping[str, float | str | None], runs: int) -> tuple[float, float]:
    """Run `ldmrt generate` in new processes, from their start to an image on disk.

    Args:
        bundle: The bundle.
        prompt: The prompt, if the model reads one.
        words: Values by the names of options; None takes the default.
        runs: Number of processes.

    Returns:
        The medians of the seconds and of the peak memory in bytes.
    """
    from ldmrt.tools.console.processes import run

    options = [part for name, value in words.items() if value is not None for part in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ldmrt.tools.cli", "generate", str(bundle), *filter(None, [prompt]), *options,
                   "-o", f"{folder}/out.png"]  # fmt: skip
        taken = [run("a new process", command, quiet=True) for _ in range(runs)]
    return statistics.median(run.seconds for run in taken), statistics.median(run.peak * 1e6 for run in taken)


@dataclass(frozen=True)
class Trade:
    """The time and the PSNR of images with a deep cache, relative to images without it."""

    deep_cache: int
    seconds: float  # of an image, the median
    ratio: float  # of medians, with by without
    psnr: float  # dB of the images with against those without, the median
    least: float


def trades(pipeline: "Pipeline", request: "Request", count: int, caches: list[int]) -> list[Trade]:
    """Make the images of `count` seeds in turns, without and with each deep cache; a first seed is not measured."""
    from ldmrt.runtime.parity.metrics import psnr

    seconds, apart = {every: list[float]() for every in (1, *caches)}, {every: list[float]() for every in caches}
    for seed in range(-1, count):
        images = {}
        for every in seconds:
            begin = time.perf_counter()
            images[every] = pipeline.generate(replace(request, seed=max(seed, 0), deep_cache=every)).pixels
            if seed >= 0:
                seconds[every].append(time.perf_counter() - begin)
        for every in caches if seed >= 0 else ():
            apart[every].append(psnr(images[every], images[1]))
    middle = {every: statistics.median(taken) for every, taken in seconds.items()}
    return [
        Trade(every, middle[every], middle[every] / middle[1], statistics.median(decibels), min(decibels))
        for every, decibels in apart.items()
    ]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--prompt",
    default="a red apple, noto style, blue background",
    show_default=True,
    help="Prompt of all images, if the model reads one.",
)
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Steps of the sampler.")
@click.option("--guidance", default=5.0, show_default=True, help="Guidance scale; 1 is none.")
@click.option("--width", type=int, help="Width in pixels; the model's own by default.")
@click.option("--height", type=int, help="Height in pixels; likewise.")
@click.option(
    "--pictures", type=click.IntRange(min=1), default=10, show_default=True, help="Number of images that are measured."
)
@THREADS
@click.option("--backend", default="auto", show_default=True, help="As in `ldmrt generate`.")
@COMPUTE
@click.option("--overlap", is_flag=True, help="Also compare requests that overlap with as many one by one.")
@click.option(
    "--deep-cache",
    "caches",
    type=click.IntRange(min=2),
    multiple=True,
    help="Also measure time and PSNR with this deep cache. May be repeated.",
)
@click.option("--json", "out", type=Output(), help="Also write the numbers to this file.")
def bench(
    bundle: Path,
    prompt: str,
    steps: int,
    guidance: float,
    width: int | None,
    height: int | None,
    pictures: int,
    threads: int,
    backend: str,
    compute: str,
    overlap: bool,
    caches: tuple[int, ...],
    out: Path | None,
) -> None:
    """Measure where the time of an image goes: the networks' calls, the time between them, a cold start, memory.

    Of a cascade the first stage is measured.

    Example: ldmrt bench out/emoji64 --pictures 5
    """
    from ldmrt.runtime.bundle.certificate import plain
    from ldmrt.runtime.files.writing import write_atomically
    from ldmrt.runtime.host import processor, versions
    from ldmrt.runtime.pipeline.opening import open_pipeline
    from ldmrt.tools.console import tables

    words: dict[str, float | str | None] = {"steps": steps, "guidance": guidance, "width": width, "height": height}
    # not fused: the U-Net and the row are timed apart
    pipeline = open_pipeline(bundle, backend, threads=threads, fused=False, compute=compute)
    text = prompt if pipeline.stage.prompt else None
    until = {"until": pipeline.stage.name} if pipeline.later else {}
    request = request_of({"prompt": text, **words, **until})
    rows = stages(pipeline, request, pictures)
    of = {row.stage: row for row in rows}
    per_second = of[pipeline.stage.network].calls / (pictures * of["picture"].p50)
    beside = overlapped(pipeline, request, pictures) if overlap else None
    traded = trades(pipeline, request, pictures, list(dict.fromkeys(caches))) if caches else []
    pipeline.close()
    words |= until
    ways: dict[str, float | str | None] = {"threads": threads, "backend": backend, "compute": compute}
    start, peak = cold(bundle, text, {**words, **ways}, min(3, pictures))

    titles = ("stage", "calls", "p50 ms", "p95 ms", "share")
    cells = [
        (row.stage, str(row.calls), f"{row.p50 * 1e3:.2f}", f"{row.p95 * 1e3:.2f}", f"{row.share:.1%}") for row in rows
    ]
    tables.show(titles, cells, title=f"{bundle.name}, {steps} steps, guidance {guidance:g}", right=titles[1:])
    click.echo(f"{per_second:.1f} rows/s; a new process to an image on disk {start:.2f} s, peak {peak / 1e6:.0f} MB")
    if beside is not None:
        click.echo(f"{pictures} requests that overlap: {beside:.2f} of their time one by one")
    for trade in traded:
        line = f"deep cache {trade.deep_cache}: {trade.ratio:.2f} of an image's time without"
        click.echo(f"{line}, PSNR {trade.psnr:.1f} dB, {trade.least:.1f} dB at least")
    if out is not None:
        about = {**words, "pictures": pictures, **ways, "cpu": processor(), "versions": versions()}
        numbers: JsonObject = {
            "rows_per_second": per_second,
            "cold_start_seconds": start,
            "peak_bytes": peak,
            "overlapped": beside,
        }
        numbers |= {"stages": [asdict(row) for row in rows], "deep_cache": [plain(trade) for trade in traded]}
        with write_atomically(out) as file:
            file.write(json.dumps({"about": about, **numbers}, indent=2).encode())
