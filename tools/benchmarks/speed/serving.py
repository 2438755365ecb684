"""Measure requests that share batches beside requests one at a time, by turns in one process.

    python -m ldmrt.tools.benchmarks.speed.serving BUNDLE --json out.json

Three measurements: 32 requests of four samplers and 4 to 30 steps; 8 equal requests on a network whose calls take the
same time whatever their rows, as a GPU behaves at a small batch; and the latency of short requests that arrive beside
long ones, against first in, first out.
"""

import contextlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.console.script import run_script

SAMPLERS, STEPS, MIXED = ("ddim", "dpmpp_2m_karras", "euler_a", "unipc"), (4, 8, 15, 30), 32
CALL = 0.02  # seconds of a call of the stand-in, whatever its rows
EQUAL, EQUAL_STEPS = 8, 20
LONG, SHORT, LONG_STEPS, SHORT_STEPS = 8, 8, 30, 4
GOALS = {"mixed": 1.25, "fixed_cost": 5.0, "short_p95": 0.5}


class FixedCost:
    """A network whose calls take the same time whatever their rows, and that returns its sample."""

    def __init__(self, engine: Any) -> None:
        """Take the network whose inputs and outputs it has."""
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def __call__(self, **arrays: Any) -> dict[str, Any]:
        """Wait, and return the sample."""
        time.sleep(CALL)
        return {self.outputs[0].name: arrays["sample"]}

    def close(self) -> None:
        """Do nothing."""


def mixed_requests() -> Iterator[Any]:
    """Yield requests of every sampler and number of steps by turns."""
    from ldmrt.runtime.pipeline.request.request import Request

    for number in range(MIXED):
        sampler, steps = SAMPLERS[number % len(SAMPLERS)], STEPS[number // len(SAMPLERS) % len(STEPS)]
        yield Request("a red apple", seed=number, scheduler=sampler, num_inference_steps=steps)


def timed(run: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    before = time.perf_counter()
    run()
    return time.perf_counter() - before


def gain(pipeline: Any, requests: list[Any], rows: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of requests one at a time and in a service, by turns, and how many times faster the latter is.

    The gain is the median of the rounds' quotients: both halves of a round see the same load of the machine.
    """
    from ldmrt.serve.jobs.service import Service
    from ldmrt.serve.models.models import fixed

    def one_at_a_time() -> None:
        for request in requests:
            pipeline.generate(request)

    def shared() -> None:
        for job in [service.submit(request) for request in requests]:
            job.result()

    seconds: dict[str, list[float]] = {"one_at_a_time": [], "shared": []}
    with contextlib.closing(Service(fixed({"model": pipeline}, {"model": rows}))) as service:
        shared()
        for _ in range(rounds):
            seconds["one_at_a_time"].append(timed(one_at_a_time))
            seconds["shared"].append(timed(shared))
    quotients = [alone / together for alone, together in zip(*seconds.values(), strict=True)]
    return {"rows": rows, "seconds": seconds, "gain": statistics.median(quotients), "gains": quotients}


def short_latency(pipeline: Any, rows: int, rounds: int) -> dict[str, Any]:
    """Return the 95th percentile of the seconds of short requests that arrive behind long ones, both ways by turns."""
    from ldmrt.runtime.pipeline.request.request import Request
    from ldmrt.serve.jobs.service import Service
    from ldmrt.serve.models.models import fixed

    steps = [LONG_STEPS, SHORT_STEPS] * min(LONG, SHORT)
    requests = [Request("a red apple", seed=n, num_inference_steps=count) for n, count in enumerate(steps)]
    latencies: dict[str, list[float]] = {"first_in_first_out": [], "shared": []}

    def first_in_first_out() -> None:
        before = time.perf_counter()
        for request in requests:
            pipeline.generate(request)
            if request.num_inference_steps == SHORT_STEPS:
                latencies["first_in_first_out"].append(time.perf_counter() - before)

    def shared() -> None:
        jobs = [service.submit(request) for request in requests]
        for job in jobs:
            job.result()
        short = (job for job in jobs if job.request.num_inference_steps == SHORT_STEPS)
        latencies["shared"].extend(job.seconds["total"] for job in short)

    with contextlib.closing(Service(fixed({"model": pipeline}, {"model": rows}))) as service:
        shared()
        latencies["shared"].clear()
        for _ in range(rounds):
            first_in_first_out()
            shared()
    p95 = {name: statistics.quantiles(seconds, n=20)[-1] for name, seconds in latencies.items()}
    return {"p95_seconds": p95, "ratio": p95["shared"] / p95["first_in_first_out"]}


def memory(pipeline: Any, rows: int, count: int) -> dict[str, Any]:
    """Return the process's memory in megabytes after each tenth of so many requests of one step."""
    import psutil

    from ldmrt.runtime.pipeline.request.request import Request
    from ldmrt.serve.jobs.service import Service
    from ldmrt.serve.jobs.store import Jobs
    from ldmrt.serve.models.models import fixed

    jobs, process = Jobs(256, 600.0, 512 << 20), psutil.Process()
    megabytes = list[float]()
    models = fixed({"model": pipeline}, {"model": rows})
    with contextlib.closing(Service(models)) as service, ThreadPoolExecutor(16) as pool:

        def ask(number: int) -> None:
            job = service.submit(Request(f"a pear {number % 8}", seed=number, num_inference_steps=1))
            jobs.add(job)
            job.result()

        for tenth in range(10):
            list(pool.map(ask, range(tenth * count // 10, (tenth + 1) * count // 10)))
            megabytes.append(round(process.memory_info().rss / 2**20, 1))
    return {"requests": count, "megabytes": megabytes}


@click.command()
@click.argument("bundle")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Of each measurement.")
@click.option("--requests", type=click.IntRange(min=10), help="Measure the memory of so many requests as well.")
@click.option("--json", "path", type=Output(), help="Write the numbers here too.")
def main(bundle: str, rounds: int, requests: int | None, path: Path | None) -> None:
    """Measure requests that share batches beside requests one at a time."""
    from ldmrt.runtime.backends.lazy_engines import LazyEngines
    from ldmrt.runtime.bundle.graphs import STEP
    from ldmrt.runtime.files.writing import write_atomically
    from ldmrt.runtime.pipeline.opening import open_pipeline
    from ldmrt.runtime.pipeline.request.request import Request
    from ldmrt.serve.models.rows import rows_of

    load = os.getloadavg()
    with open_pipeline(bundle) as pipeline:
        rows = rows_of(pipeline)
        unet = FixedCost(pipeline.engines["unet"])
        others = {name: pipeline.engines[name] for name in pipeline.engines if name not in ("unet", STEP)}
        stand_in = replace(pipeline, engines=LazyEngines.of({**others, "unet": unet}))
        equal = [Request("a pear", seed=n, num_inference_steps=EQUAL_STEPS, guidance_scale=1.0) for n in range(EQUAL)]
        figures = {
            "mixed": gain(pipeline, list(mixed_requests()), rows, rounds),
            "fixed_cost": gain(stand_in, equal, EQUAL, rounds),
            "short_beside_long": short_latency(pipeline, rows, rounds),
        }
        if requests:
            figures["memory"] = memory(pipeline, rows, requests)
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": load}
    click.echo(f"mixed: {figures['mixed']['gain']:.2f} times one at a time; goal {GOALS['mixed']}")
    click.echo(f"fixed cost: {figures['fixed_cost']['gain']:.2f} times; goal {GOALS['fixed_cost']}")
    click.echo(f"short beside long: {figures['short_beside_long']['ratio']:.2f} of FIFO; goal {GOALS['short_p95']}")
    if requests:
        click.echo(f"memory in MB: {figures['memory']['megabytes']}")
    if path is not None:
        content = {"bundle": Path(bundle).name, "machine": machine, "goals": GOALS, **figures}
        with write_atomically(path) as file:
            file.write(json.dumps(content, indent=2).encode())


if __name__ == "__main__":
    run_script(main)
