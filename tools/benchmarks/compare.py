"""Make images of one model with several programs in turns; compare their times, memory and images.

    python -m ldmrt.tools.benchmarks.compare model/pretrained/emoji64 out/emoji64 --json out/compare.json

The same weights, first latents, sampler, steps and threads, each program in a process of its own. A speed whose image
differs from diffusers' is not shown.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import numpy as np

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.console.script import run_script

from .contestant import Ask

# Run as text: run by its name, the folder of the file would hide modules of Python.
SCRIPT = Path(__file__).with_name("contestant.py").read_text(encoding="utf-8")
REFERENCE = "diffusers"
# As `ldmrt verify` asks: whole pipelines in float32, and in float16.
PSNR = {"fp32": 60.0, "fp16": 40.0}


@dataclass
class Contestant:
    """A program and its measurements."""

    name: str
    python: str
    path: Path  # what it opens
    options: dict[str, object] = field(default_factory=dict)
    ready: float = 0.0  # seconds from its start until it could draw
    first: float = 0.0  # seconds of the first image
    seconds: list[float] = field(default_factory=list)  # of the next ones
    peak: float = 0.0  # bytes
    psnr: float = 0.0  # dB to the reference's image

    @property
    def kind(self) -> str:
        """Return its name in `contestant.py`."""
        return self.name.split(",")[0]


class Worker:
    """The process of a contestant."""

    def __init__(self, contestant: Contestant, ask: Ask) -> None:
        """Start the process, with as many threads as `ask` says."""
        self._name = contestant.name
        ask = {**ask, "options": contestant.options}
        threads = {f"{name}_NUM_THREADS": str(ask["threads"]) for name in ("OMP", "MKL", "OPENBLAS")}
        self._process = subprocess.Popen(
            [contestant.python, "-c", SCRIPT, contestant.kind, str(contestant.path), json.dumps(ask)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **threads},
        )

    def answer(self) -> dict[str, float]:
        """Wait for its next answer; an `LdmrtError` with its last line of output if it has ended."""
        from ldmrt.runtime.errors import LdmrtError

        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("ANSWER "):
                return dict(json.loads(line.removeprefix("ANSWER ")))
        _, errors = self._process.communicate()
        last = (errors.strip().splitlines() or ["nothing"])[-1]
        raise LdmrtError("compare", f"{self._name} ended", expected="an image", found=last)

    def draw(self, path: Path) -> dict[str, float]:
        """Let it make an image and save it at `path`, .npy."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def race(contestants: list[Contestant], ask: Ask, rounds: int, folder: Path) -> None:
    """Let the contestants make images in turns, a first one and `rounds` more, and note their measurements."""
    from ldmrt.runtime.parity.metrics import psnr

    workers = []
    try:
        for contestant in contestants:
            begin = time.perf_counter()
            workers.append(Worker(contestant, ask))
            workers[-1].answer()
            contestant.ready = time.perf_counter() - begin
        for number in range(rounds + 1):
            for contestant, worker in zip(contestants, workers, strict=True):
                answer = worker.draw(folder / f"{contestant.name}.npy")
                if number:
                    contestant.seconds.append(answer["seconds"])
                else:
                    contestant.first = answer["seconds"]
                contestant.peak = answer["peak"]
    finally:
        for worker in workers:
            worker.close()
    expected = np.load(folder / f"{REFERENCE}.npy")
    for contestant in contestants:
        contestant.psnr = float(psnr(np.load(folder / f"{contestant.name}.npy"), expected))


def ratio(one: Contestant, other: Contestant) -> float:
    """Return the median of the rounds' ratios of seconds; a busy moment affects both."""
    return statistics.median(a / b for a, b in zip(one.seconds, other.seconds, strict=True))


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--prompt", default="a red apple, noto style, blue background", show_default=True)
@click.option("--side", type=click.IntRange(8), help="Pixels; the model's own size by default.")
@click.option("--steps", default=20, show_default=True)
@click.option("--guidance", default=5.0, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=10, show_default=True, help="Images of each, after a first one.")
@click.option("--compiled", is_flag=True, help="Also diffusers with its U-Net through torch.compile.")
@click.option("--low-memory", is_flag=True, help="Also ldmrt with one component in memory at a time.")
@click.option("--optimum", "other", type=click.Path(exists=True), help="A Python that has optimum-onnx: also that.")
@click.option("--exported", type=click.Path(exists=True, path_type=Path), help="With --optimum: on its own export too.")
@click.option("--json", "out", type=Output(), help="Write the numbers here too.")
def compare(
    checkpoint: Path, bundle: Path, prompt: str, side: int | None, steps: int, guidance: float, threads: int,
    rounds: int, compiled: bool, low_memory: bool, other: str | None, exported: Path | None, out: Path | None,
) -> None:  # fmt: skip
    """Make one image with diffusers on CHECKPOINT and with ldmrt on BUNDLE, in turns."""
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.files.writing import write_atomically
    from ldmrt.runtime.host import processor, versions
    from ldmrt.runtime.samplers.noise import noise

    opened = Bundle.open(bundle)
    side = side or opened.shape.size
    options: dict[str, object] = {"threads": threads}
    contestants = [
        Contestant(REFERENCE, sys.executable, checkpoint),
        Contestant("ldmrt", sys.executable, bundle, options),
    ]
    if low_memory:
        contestants.append(Contestant("ldmrt, low memory", sys.executable, bundle, {**options, "low_memory": True}))
    if compiled:
        contestants.append(Contestant("torch.compile", sys.executable, checkpoint))
    if other:
        contestants.append(Contestant("optimum", other, bundle))
        contestants += [Contestant("optimum, own export", other, exported)] if exported else []
    least = PSNR.get(opened.precision("unet"), PSNR["fp16"])
    with tempfile.TemporaryDirectory() as folder:
        latents = noise([0], 0, (opened.shape.channels, side // opened.shape.factor, side // opened.shape.factor))
        np.save(f"{folder}/noise.npy", latents)
        ask: Ask = {"prompt": prompt, "width": side, "height": side, "steps": steps, "guidance": guidance}
        race(contestants, {**ask, "threads": threads, "noise": f"{folder}/noise.npy"}, rounds, Path(folder))
    show(contestants, least, f"{bundle.name}, {side}x{side}, {steps} steps, guidance {guidance:g}, {threads} threads")
    if out is not None:
        about = {**ask, "threads": threads, "rounds": rounds, "cpu": processor(), "versions": versions()}
        rows = [{**asdict(each), "ratio": ratio(each, contestants[0])} for each in contestants]
        for row in rows:
            row.pop("python"), row.pop("path"), row.pop("options")
            row["psnr"] = row["psnr"] if np.isfinite(row["psnr"]) else "identical"
        with write_atomically(out) as file:
            file.write(json.dumps({"about": about, "contestants": rows}, indent=2).encode())
    if different := [contestant.name for contestant in contestants if contestant.psnr < least]:
        problem, expected = "the images differ", f">= {least:g} dB to diffusers'"
        raise LdmrtError("compare", problem, expected=expected, found=", ".join(different))


def show(contestants: list[Contestant], least: float, title: str) -> None:
    """Print a table; a speed whose image has a PSNR below `least` is not shown."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in ("", "seconds", f"of {REFERENCE}'", "first image", "peak MB", "PSNR dB"):
        table.add_column(name, justify="left" if not name else "right")
    for contestant in contestants:
        speed = ["", ""]
        if contestant.psnr >= least:
            speed = [f"{statistics.median(contestant.seconds):.3f}", f"{ratio(contestant, contestants[0]):.3f}"]
        first = f"{contestant.ready + contestant.first:.2f}"
        table.add_row(contestant.name, *speed, first, f"{contestant.peak / 1e6:.0f}", f"{contestant.psnr:.1f}")
    Console().print(table)


if __name__ == "__main__":
    run_script(compare)
