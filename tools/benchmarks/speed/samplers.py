"""Measure the time of a sampler's row on the host, beside the same step of diffusers.

    python -m ldmrt.tools.benchmarks.speed.samplers --json out.json

The prediction and the noise are ready, the prediction where guidance leaves it, so the time is all that passes between
two calls of the network. Work that is done once per image is not measured: diffusers' `set_timesteps`, and the plan and
its buffers.
"""

import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from unittest import mock

import click

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.console.script import run_script

SHAPE = (2, 4, 64, 64)
PARTED = ("ScoreSdeVeScheduler", "ScoreSdeVpScheduler")  # have no `step` in diffusers, and are left out
THREADS = 2
GOAL = 1 / 5  # of diffusers' `scheduler.step`


@dataclass(frozen=True)
class RowCost:
    """Microseconds per row: the least of the repeats, as interruptions only add to it."""

    name: str
    ours: float
    step: float  # diffusers' scheduler.step
    scaled: float  # scale_model_input, then step: what its pipelines do

    @property
    def ratio(self) -> float:
        """Return ldmrt's time relative to diffusers' step."""
        return self.ours / self.step


@click.command()
@click.argument("names", nargs=-1)
@click.option("--steps", type=click.IntRange(min=4, max=50), default=50, show_default=True)
@click.option("--repeats", type=click.IntRange(min=1), default=31, show_default=True, help="Runs; the least counts.")
@click.option("--json", "out", type=Output(), help="Write the numbers here too.")
def bench(names: tuple[str, ...], steps: int, repeats: int, out: Path | None) -> None:
    """Time the rows of NAMES, all samplers by default, against diffusers' steps on the same latents.

    Example: python -m ldmrt.tools.benchmarks.speed.samplers dpmpp_2m euler
    """
    from rich.console import Console
    from rich.table import Table

    from ldmrt.runtime.files.writing import write_atomically
    from ldmrt.runtime.host import processor
    from ldmrt.runtime.samplers.registry import SCHEDULERS, find_scheduler
    from ldmrt.tools.console.progress import watched

    wanted = names or tuple(SCHEDULERS)
    classes = {name: find_scheduler({}, name)[0].class_name for name in wanted}  # it knows them all
    wanted = tuple(name for name, one in classes.items() if one not in PARTED)
    torch, _ = libraries()
    torch.set_num_threads(THREADS)
    costs = list(watched((cost(name, steps, repeats) for name in wanted), len(wanted), lambda one: one.name))
    about = {
        **{name: version(name) for name in ("ldmrt", "numpy", "torch", "diffusers")},
        "python": platform.python_version(),
        "cpu": processor(),
        "threads": THREADS,
        "load": " ".join(f"{one:.1f}" for one in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown",
        "latents": f"{SHAPE} float32",
        "steps": steps,
        "repeats": repeats,
    }
    title = "host cost of a row, microseconds"
    table = Table("sampler", "ldmrt", "diffusers: step", "ratio", "scale + step", "ratio", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for one in costs:
        verdict = "green" if one.ratio <= GOAL else "yellow"
        table.add_row(one.name, f"{one.ours:.1f}", f"{one.step:.1f}", f"[{verdict}]{one.ratio:.2f}[/]",
                      f"{one.scaled:.1f}", f"{one.ours / one.scaled:.2f}")  # fmt: skip
    Console().print(table)
    reached = sum(one.ratio <= GOAL for one in costs)
    click.echo(f"{reached} of {len(costs)} at most {GOAL:g} of diffusers' step")
    click.echo(", ".join(f"{key} {value}" for key, value in about.items()))
    if out is not None:
        with write_atomically(out) as file:
            file.write(json.dumps({"about": about, "microseconds": [asdict(one) for one in costs]}, indent=2).encode())


def libraries() -> tuple[ModuleType, ModuleType]:
    """Import torch and diffusers."""
    from ldmrt.runtime.optional import unavailable

    try:
        import diffusers
        import torch
    except ImportError as error:
        raise unavailable(error, "sampler_speed") from None
    diffusers.utils.logging.set_verbosity_error()  # of keys that a class does not have
    return torch, diffusers


def cost(name: str, steps: int, repeats: int) -> RowCost:
    """Measure a sampler and diffusers' class of it in turns, so that a busy moment affects all of them."""
    with contestants(name, steps) as runs:
        for run, _ in runs:
            run()  # what is computed once and kept
        took: list[list[float]] = [[] for _ in runs]
        for _ in range(repeats):
            for (run, rows), seconds in zip(runs, took, strict=True):
                seconds.append(run() / rows * 1e6)
    ours, step, scaled = map(min, took)
    return RowCost(name, ours, step, scaled)


@contextmanager
def contestants(name: str, steps: int) -> Iterator[list[tuple[Callable[[], float], int]]]:
    """Yield ldmrt's rows, diffusers' steps, and those with scaled inputs: functions that return seconds, and rows."""
    import importlib

    import numpy as np

    from ldmrt.runtime.samplers.config import CONFIG
    from ldmrt.runtime.samplers.registry import find_scheduler, plan_from_config
    from ldmrt.runtime.samplers.workspace import Workspace

    torch, diffusers = libraries()
    x, m, z = np.random.default_rng(0).standard_normal((3, *SHAPE), dtype=np.float32)
    tensors = [torch.from_numpy(array) for array in (x, m, z)]
    plan = plan_from_config(CONFIG, steps, name=name)
    scheduler, asked = find_scheduler(CONFIG, name)
    theirs_class = getattr(diffusers, scheduler.class_name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of dpmsolver without ++
        theirs = theirs_class.from_config({**CONFIG, **asked})

    def ours() -> float:
        run = Workspace(plan, x)
        begin = time.perf_counter()
        for row in range(plan.rows):
            prediction, fresh = run.slots(row)
            run.move(row, m if prediction is None else prediction, fresh)
        return time.perf_counter() - begin

    def run_theirs(scaled: bool) -> float:
        theirs.set_timesteps(steps)
        theirs.noise_sampler = lambda *_: tensors[2]  # of DPMSolverSDEScheduler
        theirs.is_scale_input_called = True  # else some classes log a warning each step
        x, m, _ = tensors
        begin = time.perf_counter()
        for t in theirs.timesteps:
            if scaled and hasattr(theirs, "scale_model_input"):  # flows have none
                theirs.scale_model_input(x, t)
            x = theirs.step(m, t, x).prev_sample
        return time.perf_counter() - begin

    module = importlib.import_module(theirs_class.__module__)
    with mock.patch.object(module, "randn_tensor", return_value=tensors[2], create=True), torch.no_grad():
        theirs.set_timesteps(steps)
        count = len(theirs.timesteps)
        yield [(ours, plan.rows), (lambda: run_theirs(False), count), (lambda: run_theirs(True), count)]


def main() -> None:
    """Run the benchmark with `THREADS` threads in every library."""
    for library in ("OMP", "OPENBLAS", "MKL"):  # read when NumPy is first imported
        os.environ.setdefault(f"{library}_NUM_THREADS", str(THREADS))
    run_script(bench)


if __name__ == "__main__":
    main()
