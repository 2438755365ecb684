"""Log a training: one JSON object a line, each of the steps since the one before."""

import json
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ldmrt.runtime.errors import LdmrtError, LdmrtWarning, first_line
from ldmrt.runtime.files.reading import JsonObject, read_bytes
from ldmrt.runtime.files.writing import write_atomically

from .diffusion.timesteps import TIMESTEPS
from .loop.task import Progress, losses_of_images
from .mirrors import Mirror

BINS = 10  # of the timesteps, over which losses are averaged
LARGEST = 1 << 28  # bytes of a log: a million lines
MEGABYTE = 1e6
NUMBERS = ("samples", "learning_rate", "gradient_norm", "images_per_second", "skipped", "memory_mb")
SCALED = ("loss_scale", "steps_skipped")  # of a training in fp16


class Log:
    """Averages what steps report, and appends a line to a file for every few of them."""

    def __init__(self, path: Path, every: int, timesteps: int, step: int = 0, mirrors: Sequence[Mirror] = ()) -> None:
        """Open the log of a run that goes on after `step`.

        Lines of later steps, of a run that was killed, are removed, and so are those that cannot be read.

        Args:
            path: The file; it is made where it is missing.
            every: Steps between two lines.
            timesteps: How many timesteps losses are averaged by; 0 where the task has none.
            step: Steps that the run has taken.
            mirrors: Take the lines too.

        Raises:
            LdmrtError: A folder has its name.
        """
        if path.is_dir():
            raise LdmrtError("train", f"{path} is a folder", expected="a file, or nothing", hint="move it away")
        self.path, self.every, self.timesteps, self.mirrors = path, every, timesteps, list(mirrors)
        lines, damaged = _read(path) if step and path.is_file() else ([], [])
        if damaged:
            warnings.warn(f"train: {len(damaged)} damaged lines of {path} are removed", LdmrtWarning, stacklevel=2)
        kept = [line for line in lines if line["step"] <= step]
        taken = [line for line in kept if "validation" not in line]
        self.before = taken[-1] if taken else {"samples": 0, "skipped": 0}  # the totals of the run that goes on
        self.start: int = self.before["skipped"]
        with write_atomically(path) as file:
            file.write("".join(map(_line, kept)).encode())
        self._begin()

    def _begin(self) -> None:
        """Start an average of no steps."""
        self.steps = 0  # that were taken
        self.samples = 0  # of all steps
        self.averaged = 0  # samples of the steps that were taken
        self.gradient = 0.0
        self.sums: dict[str, float] = {}  # of the parts of the loss
        self.by_time = torch.zeros(BINS, 2, dtype=torch.float64)  # the losses' sum and number

    def add(self, progress: Progress, skipped: int = 0) -> None:
        """Add a step, and write a line where it is due; of a step in fp16 that was skipped, samples alone count.

        Args:
            progress: The step's.
            skipped: How many images could not be read since the log was opened.
        """
        losses = {name: value.double().cpu() for name, value in progress.losses.items()}
        total = losses_of_images(losses)
        self.samples += len(total)
        if progress.taken:
            self.steps += 1
            self.averaged += len(total)
            self.gradient += progress.gradient
            for name, value in losses.items():
                self.sums[name] = self.sums.get(name, 0.0) + value.sum().item()
        if TIMESTEPS in progress.noted and progress.taken:
            bins = progress.noted[TIMESTEPS].cpu() * BINS // self.timesteps
            self.by_time.index_add_(0, bins, torch.stack([total, torch.ones_like(total)], dim=1))
        if progress.step % self.every == 0 or progress.step == progress.steps:
            self.write(progress, skipped)

    def validated(self, step: int, losses: Mapping[str, float]) -> None:
        """Write a line of the losses of held-out images after a step; null for those that are not finite."""
        finite = {name: value if math.isfinite(value) else None for name, value in losses.items()}
        total = sum(losses.values())
        self._append({"step": step, "loss": total if math.isfinite(total) else None, "validation": finite})

    def write(self, progress: Progress, skipped: int = 0) -> None:
        """Write a line of the steps since the last one, if any were taken; the run may stop between two lines."""
        if not self.steps:
            return
        parts = {name: value / self.averaged for name, value in self.sums.items()}
        line: JsonObject = {
            "step": progress.step,
            "samples": self.before["samples"] + self.samples,
            "loss": sum(parts.values()),
            "parts": parts,
            "loss_by_timestep": [total / count if count else None for total, count in self.by_time.tolist()],
            "learning_rate": progress.learning_rate,
            "gradient_norm": self.gradient / self.steps,
            "images_per_second": progress.rate,
            "skipped": self.start + skipped,
            "memory_mb": memory(),
        }
        if not self.timesteps:
            del line["loss_by_timestep"]
        if progress.loss_scale is not None:
            line |= {"loss_scale": progress.loss_scale.scale, "steps_skipped": progress.loss_scale.skipped}
        self.before = line
        self._begin()
        self._append(line)

    def _append(self, line: JsonObject) -> None:
        """Append one line to the file, and tell the mirrors; one that fails is told no more, and a warning says so."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(line))
        self.mirrors = [mirror for mirror in self.mirrors if _takes(mirror, line)]


def _takes(mirror: Mirror, line: JsonObject) -> bool:
    """Tell a mirror one line, and return whether it takes more."""
    try:
        mirror.write(line)
    except Exception as error:
        problem = f"{type(mirror).__name__} takes no more lines of the log: {first_line(error)}"
        warnings.warn(f"train: {problem}", LdmrtWarning, stacklevel=4)
        return False
    return True


def read_log(path: Path) -> list[JsonObject]:
    """Read the lines of a log; the last one may be cut off, where the process was killed.

    Raises:
        LdmrtError: The file is missing, or another line is no line of a log.
    """
    lines, damaged = _read(path)
    for number, line in damaged:
        raise LdmrtError("train", f"{path} line {number} is not a line of a training's log", found=line[:80])
    return lines


def _read(path: Path) -> tuple[list[JsonObject], list[tuple[int, str]]]:
    """Return the lines of a log, and the numbers and texts of those that are none."""
    found, damaged = list[JsonObject](), list[tuple[int, str]]()
    lines = read_bytes("train", path, LARGEST).decode(errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            one = json.loads(line)
            whole = _whole(one)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            whole = False
        if whole:
            found.append(one)
        else:
            damaged.append((number, line))
    return found, damaged


def memory() -> float:
    """Return the most memory that the process has held, in MB: the GPU's where one was used; 0 on Windows."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / MEGABYTE
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE


def _whole(line: JsonObject) -> bool:
    """Tell whether a line has all that is shown of it; what is none of these is an error of Python's."""
    losses = line["validation"] if "validation" in line else line["parts"]
    numbers = [line["step"], line["loss"], *losses.values()]
    if "validation" in line:
        numbers = [value for value in numbers if value is not None]
    else:
        numbers += [line[name] for name in (*NUMBERS, *(name for name in SCALED if name in line))]
        numbers += [value for value in line.get("loss_by_timestep", []) if value is not None]
    return isinstance(line["step"], int) and all(map(math.isfinite, numbers))


def _line(line: JsonObject) -> str:
    return json.dumps(line) + "\n"
