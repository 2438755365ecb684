"""`ldmrt bench`: where the time of an image goes."""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.options.common import THREADS

if TYPE_CHECKING:
    from ldmrt.runtime.pipeline.pipeline import Pipeline
    from ldmrt.runtime.tensors import Engine


@dataclass(frozen=True)
class Spread:
    """Times of one stage, in seconds."""

    stage: str
    calls: int
    p50: float
    p95: float
    share: float  # of all images' time

    @classmethod
    def of(cls, stage: str, times: list[float], whole: float) -> "Spread":
        """Summarise the time of every call."""
        ordered = sorted(times)
        p95 = ordered[round(0.95 * (len(times) - 1))]
        return cls(stage, len(times), statistics.median(times), p95, sum(times) / whole)


class Timed:
    """An engine that notes how long its calls take."""

    def __init__(self, engine: "Engine", times: list[float]) -> None:
        self._engine, self._times = engine, times
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def __call__(self, **arrays: Any) -> dict[str, Any]:
        begin = time.perf_counter()
        out = self._engine(**arrays)
        self._times.append(time.perf_counter() - begin)
        return out

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()


def stages(pipeline: "Pipeline", prompt: str, pictures: int, asked: dict[str, Any]) -> list[Spread]:
    """Draw `pictures` one by one after a first one that is not counted: each network's calls, what is between them, and
    all of it. Each has a prompt of its own, since those that were encoded before are not encoded again.
    """
    from ldmrt.runtime.backends.lazy_engines import LazyEngines

    times: dict[str, list[float]] = {name: [] for name in pipeline.engines}
    engines = LazyEngines({name: partial(_timed, pipeline.engines, name, times[name]) for name in pipeline.engines})
    timed = replace(pipeline, engines=engines)
    timed(prompt, **asked)
    for noted in times.values():
        noted.clear()
    whole, between = [], []
    for seed in range(pictures):
        before = sum(map(sum, times.values()))
        begin = time.perf_counter()
        timed(f"{prompt} {seed}", seed=seed, **asked)
        whole.append(time.perf_counter() - begin)
        between.append(whole[-1] - (sum(map(sum, times.values())) - before))
    total = sum(whole)
    rows = [Spread.of(name, noted, total) for name, noted in times.items() if noted]
    return [*rows, Spread.of("outside networks", between, total), Spread.of("picture", whole, total)]


def _timed(engines: "Mapping[str, Engine]", name: str, times: list[float]) -> Timed:
    return Timed(engines[name], times)  # opened no sooner than it is asked for


def overlapped(pipeline: "Pipeline", prompt: str, pictures: int, asked: dict[str, Any]) -> float:
    """Time of as many requests by `Pipeline.draw`, where they overlap, of that one by one: the median of three turns.
    Each has a prompt of its own.
    """
    from ldmrt.runtime.pipeline.request.request import Request

    ways: list[Callable[[list[Request]], Iterable[Any]]] = [lambda many: map(pipeline, many), pipeline.draw]
    ratios = []
    for turn in range(3):
        seconds = []
        for way, draw in enumerate(ways):
            many = [Request(f"{prompt} {turn} {way} {seed}", seed=seed, **asked) for seed in range(pictures)]
            begin = time.perf_counter()
            for _ in draw(many):
                pass
            seconds.append(time.perf_counter() - begin)
        ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios)


def cold(bundle: Path, prompt: str, backend: str, asked: dict[str, Any], runs: int) -> tuple[float, float]:
    """A new process from its start to an image on disk: the median of seconds, and of bytes at its peak."""
    from ldmrt.tools.console.processes import run

    options = [part for name, value in asked.items() if value is not None for part in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ldmrt.tools.cli", "generate", str(bundle), prompt, *options,
                   "--backend", backend, "-o", f"{folder}/out.png"]  # fmt: skip
        taken = [run("a new process", command, quiet=True) for _ in range(runs)]
    return statistics.median(one.seconds for one in taken), statistics.median(one.peak * 1e6 for one in taken)


@dataclass(frozen=True)
class Trade:
    """What a deep cache gains and costs, by images drawn with and without it in turns."""

    deep_cache: int
    seconds: float  # of an image, the median
    ratio: float  # of medians, with by without
    psnr: float  # dB of the images with against those without, the median
    least: float


def trades(pipeline: "Pipeline", prompt: str, pictures: int, asked: dict[str, Any], caches: list[int]) -> list[Trade]:
    """Draw `pictures` seeds, each without and with every deep cache, after one that is not counted."""
    from ldmrt.runtime.parity.metrics import psnr

    seconds, apart = {every: list[float]() for every in (1, *caches)}, {every: list[float]() for every in caches}
    for seed in range(-1, pictures):
        drawn = {}
        for every in seconds:
            begin = time.perf_counter()
            drawn[every] = pipeline(prompt, seed=max(seed, 0), deep_cache=every, **asked).pixels
            if seed >= 0:
                seconds[every].append(time.perf_counter() - begin)
        for every in caches if seed >= 0 else ():
            apart[every].append(psnr(drawn[every], drawn[1]))
    middle = {every: statistics.median(taken) for every, taken in seconds.items()}
    return [
        Trade(every, middle[every], middle[every] / middle[1], statistics.median(found), min(found))
        for every, found in apart.items()
    ]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompt", default="a red apple, noto style, blue background", show_default=True, help="Of all images.")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Of the sampler.")
@click.option("--guidance", default=5.0, show_default=True, help="1 is none.")
@click.option("--width", type=int, help="Pixels; the model's own size by default.")
@click.option("--height", type=int, help="Pixels; the same.")
@click.option(
    "--pictures", type=click.IntRange(min=1), default=10, show_default=True, help="How many are drawn and timed."
)
@THREADS
@click.option("--backend", default="auto", show_default=True, help="As in `ldmrt generate`.")
@click.option("--overlap", is_flag=True, help="Also requests that overlap, beside as many one by one, in three turns.")
@click.option(
    "--deep-cache",
    "caches",
    type=click.IntRange(min=2),
    multiple=True,
    help="Also in turns with a deep cache of so many: time and PSNR beside none. May be repeated.",
)
@click.option("--json", "out", type=Output(), help="Write the numbers here too.")
def bench(
    bundle: Path, prompt: str, steps: int, guidance: float, width: int | None, height: int | None, pictures: int,
    threads: int, backend: str, overlap: bool, caches: tuple[int, ...], out: Path | None,
) -> None:  # fmt: skip
    """Measure where the time of an image goes: each network's calls, what is between them, a cold start, memory.

    Example: ldmrt bench out/emoji64 --pictures 5
    """
    from ldmrt.runtime.bundle.certificate import plain
    from ldmrt.runtime.files.writing import write_atomically
    from ldmrt.runtime.host import processor, versions
    from ldmrt.runtime.pipeline.pipeline import open_pipeline
    from ldmrt.runtime.pipeline.request.fields import from_short
    from ldmrt.tools.console import tables

    words = {"steps": steps, "guidance": guidance, "width": width, "height": height}
    asked = from_short(words)
    pipeline = open_pipeline(bundle, backend, threads=threads, fused=False)  # whose rows are seen one by one
    rows = stages(pipeline, prompt, pictures, asked)
    of = {row.stage: row for row in rows}
    per_second = of["unet"].calls / (pictures * of["picture"].p50)
    beside = overlapped(pipeline, prompt, pictures, asked) if overlap else None
    traded = trades(pipeline, prompt, pictures, asked, list(dict.fromkeys(caches))) if caches else []
    pipeline.close()
    start, peak = cold(bundle, prompt, backend, {**words, "threads": threads}, min(3, pictures))

    titles = ("stage", "calls", "p50 ms", "p95 ms", "share")
    cells = [
        (row.stage, str(row.calls), f"{row.p50 * 1e3:.2f}", f"{row.p95 * 1e3:.2f}", f"{row.share:.1%}") for row in rows
    ]
    tables.show(titles, cells, title=f"{bundle.name}, {steps} steps, guidance {guidance:g}", right=titles[1:])
    click.echo(f"{per_second:.1f} rows/s; a new process to an image on disk {start:.2f} s, peak {peak / 1e6:.0f} MB")
    if beside is not None:
        click.echo(f"{pictures} requests that overlap: {beside:.2f} of their time one by one")
    for one in traded:
        said = f"deep cache {one.deep_cache}: {one.ratio:.2f} of an image's time without"
        click.echo(f"{said}, PSNR {one.psnr:.1f} dB, {one.least:.1f} dB at least")
    if out is not None:
        about = {**words, "pictures": pictures, "threads": threads, "backend": backend, "cpu": processor(),
                 "versions": versions()}  # fmt: skip
        found: dict[str, Any] = {
            "rows_per_second": per_second,
            "cold_start_seconds": start,
            "peak_bytes": peak,
            "overlapped": beside,
        }
        found |= {"stages": [asdict(row) for row in rows], "deep_cache": [plain(one) for one in traded]}
        with write_atomically(out) as file:
            file.write(json.dumps({"about": about, **found}, indent=2).encode())
