"""Run the contestants of a comparison in turns, each in a process of its own, and measure time, memory and images."""

import contextlib
import json
import os
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .contestant import Ask

# Run as text: run by its name, the folder of the file would hide modules of Python.
SCRIPT = Path(__file__).with_name("contestant.py").read_text(encoding="utf-8")
REFERENCE = "diffusers"
TRUNCATES = {"GenAI"}  # grey levels are truncated to integers, where the others round


@dataclass
class Contestant:
    """A program and its measurements."""

    name: str
    python: str
    path: Path  # what it opens
    options: dict[str, object] = field(default_factory=dict)
    precision: str = "fp32"  # the coarsest in which it may compute
    ready: float = 0.0  # seconds from its start until it could draw
    first: float = 0.0  # seconds of the first image
    seconds: list[float] = field(default_factory=list)  # of the next ones
    peak: float = 0.0  # bytes
    psnr: float = 0.0  # dB to the reference's image

    @property
    def kind(self) -> str:
        """Return its name in `contestant.py`."""
        return self.name.split(",")[0]

    @property
    def least(self) -> float:
        """Return the PSNR in dB that its image needs; below that its speed is not shown."""
        from ldmrt.runtime.parity.tolerances import IMAGE

        return IMAGE[self.precision].limit


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
            stderr=subprocess.STDOUT,  # which is read
            text=True,
            env={**os.environ, **threads},
        )

    def answer(self) -> dict[str, float]:
        """Wait for its next answer; an `LdmrtError` with its last line of output if it has ended."""
        from ldmrt.runtime.errors import LdmrtError

        assert self._process.stdout is not None
        last = "nothing"
        for line in self._process.stdout:
            if line.startswith("ANSWER "):
                return dict(json.loads(line.removeprefix("ANSWER ")))
            last = line.strip() or last
        raise LdmrtError("compare", f"{self._name} ended", expected="an image", found=last)

    def draw(self, path: Path) -> dict[str, float]:
        """Let it make an image and save it at `path`, .npy."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which `answer` explains
            self._process.stdin.write(f"{path}\n")
            self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def race(contestants: list[Contestant], ask: Ask, rounds: int, folder: Path) -> None:
    """Let the contestants make images in turns, a first one and `rounds` more, and note their measurements."""
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
    for contestant in contestants:
        contestant.psnr = similarity(contestant, folder)


def similarity(contestant: Contestant, folder: Path) -> float:
    """Return the PSNR in dB of a contestant's last image to the reference's, which gets the contestant's rounding.

    Between a truncated and a rounded image it would be 51 dB at most, although both programs computed the same.
    """
    from ldmrt.runtime.parity.metrics import psnr

    as_integers = np.floor if contestant.kind in TRUNCATES else np.rint
    image, expected = (as_integers(np.load(folder / f"{name}.npy")) for name in (contestant.name, REFERENCE))
    return psnr(image.astype(np.uint8), expected.astype(np.uint8))


def ratio(one: Contestant, other: Contestant) -> float:
    """Return the median of the rounds' ratios of seconds; a busy moment affects both."""
    return statistics.median(a / b for a, b in zip(one.seconds, other.seconds, strict=True))
