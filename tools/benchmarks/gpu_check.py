"""Measure a model of Stable Diffusion 1.5's size on this machine's GPU, with everything that can run it here.

    bash tools/gpu_check.sh
    python -m ldmrt.tools.benchmarks.gpu_check --model model/pretrained/emoji64 --device cpu --steps 4

Each row is a process; a package that is missing, a failure or a row that takes too long is a row that says so.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import click


@dataclass(frozen=True)
class Row:
    """A measurement: its name and title, the packages and rows it needs, and its limit in seconds."""

    name: str
    title: str
    needs: tuple[str, ...]
    after: tuple[str, ...] = ()
    limit: float = 90


MODEL = ("torch", "transformers", "safetensors", "tokenizers")
BUILDER = ("onnx", "polygraphy", "cuda.bindings")
ROWS = (
    Row("reference", "PyTorch, float32: the reference", MODEL),
    Row("eager", "PyTorch eager", MODEL),
    Row("compile", "torch.compile, CUDA graphs", MODEL, limit=180),
    Row("bundle", "export to ONNX", (*MODEL, "onnx", "onnxscript"), limit=180),
    Row("portable", "TensorRT-RTX, portable engine", ("tensorrt_rtx", *BUILDER), ("bundle",)),
    Row("onnxruntime-cuda", "ONNX Runtime, CUDA", ("onnxruntime",), ("bundle",)),
    Row("onnxruntime-cuda-folded", "ONNX Runtime, CUDA, a launch a row", ("onnxruntime",), ("bundle",)),
    Row("tensorrt-rtx", "ldmrt on TensorRT-RTX", ("tensorrt_rtx", *BUILDER), ("bundle",), 120),
    Row("tensorrt", "ldmrt on TensorRT", ("tensorrt", *BUILDER), ("bundle",), 180),
    Row("tensorrt-rtx-folded", "TensorRT-RTX, a launch a row", ("tensorrt_rtx", *BUILDER), ("tensorrt-rtx",), 120),
    Row("tensorrt-folded", "TensorRT, a launch a row", ("tensorrt", *BUILDER), ("tensorrt",), 180),
)
ON_CPU = (*ROWS[:4], Row("onnxruntime", "ONNX Runtime, CPU", ("onnxruntime",), ("bundle",)))


@dataclass(frozen=True)
class Outcome:
    """The result of a row: its values, or why there are none."""

    name: str
    title: str
    values: dict[str, object] = field(default_factory=dict)
    why: str = ""
    took: float = 0.0


Runner = Callable[[Row, float], Outcome]


def child(options: Sequence[str]) -> Runner:
    """Return a function that measures a row in its own process, within a limit of seconds."""

    def run(row: Row, limit: float) -> Outcome:
        begin = time.perf_counter()
        command = command_of(row, options)
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            code = run_group(command, limit, out, err)
            took = time.perf_counter() - begin
            out.seek(0)
            err.seek(0)
            printed, said = out.read().splitlines(), [line for line in err.read().splitlines() if line.strip()]
        if code is None:
            return Outcome(row.name, row.title, why=f"stopped after {limit:.0f} s", took=took)
        if code:
            why = said[-1].removeprefix("error: ") if said else "it said nothing"
            return Outcome(row.name, row.title, why=f"{why[:300]} (exit code {code})", took=took)
        try:
            values = json.loads(printed[-1])
        except (IndexError, ValueError):
            return Outcome(row.name, row.title, why="it measured nothing", took=took)
        return Outcome(row.name, row.title, values, took=took)

    return run


def command_of(row: Row, options: Sequence[str]) -> list[str]:
    """Return the command that measures a row."""
    return [sys.executable, "-m", "ldmrt.tools.benchmarks.gpu_rows", row.name, *options]


def run_group(command: Sequence[str], limit: float, out: IO[str], err: IO[str]) -> int | None:
    """Run a process and return its exit code; None if it took longer than `limit` seconds.

    All processes that it has started are killed with it: compilers leave helpers that would hold on to the GPU.
    """
    process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def missing(row: Row) -> list[str]:
    """List the packages that a row needs and that are not installed."""

    def there(name: str) -> bool:
        try:
            return find_spec(name) is not None
        except ModuleNotFoundError:  # of the package around it
            return False

    return [name for name in row.needs if not there(name)]


def measure(rows: Sequence[Row], run: Runner, budget: float) -> Iterator[Outcome]:
    """Run the rows that can run, in order, within `budget` seconds for all."""
    end, failed = time.perf_counter() + budget, dict[str, str]()
    for row in rows:
        left = end - time.perf_counter()
        lacking, before = missing(row), [name for name in row.after if name in failed]
        if lacking:
            outcome = Outcome(row.name, row.title, why=f"not installed: {', '.join(lacking)}")
        elif before:
            outcome = Outcome(row.name, row.title, why=f"it comes after {before[0]}, which failed")
        elif left < 1:
            outcome = Outcome(row.name, row.title, why="no time was left")
        else:
            outcome = run(row, min(row.limit, left))
        if outcome.why:
            failed[row.name] = outcome.why
        yield outcome


def table(outcomes: Sequence[Outcome], steps: int) -> str:
    """Format the outcomes as a plain-text table, as a bare machine may lack packages for tables."""
    lines = [["", "rows/s", f"{steps} steps, s", "off by", ""]]
    for one in outcomes:
        values = one.values
        extra = [f"{name} {_short(value)}" for name, value in values.items() if name not in SHOWN]
        cells = [_short(values.get(name, "")) for name in SHOWN]
        lines.append([one.title, *cells, one.why or ", ".join(extra)])
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(line[i].rjust(widths[i]) for i in (1, 2, 3)), line[4]]).rstrip()
        for line in lines
    )


SHOWN = ("rows_per_s", "seconds", "off")


def _short(value: object) -> str:
    if value is None:
        return "not known"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def gpu_name() -> str:
    """Return the compute capability of the GPU, and its name if nvidia-smi is installed.

    Raises:
        LdmrtError: There is no GPU.
    """
    from ldmrt.runtime.backends.gpu import compute_capability

    capability = compute_capability()
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        said = []
    return f"{capability}, {said[0]}" if said else capability


def place_of(out: Path | None) -> Path:
    """Return the file for the numbers: `out`, or one in the folder $OUT or in this project's results."""
    return out or Path(os.environ.get("OUT") or "tools/benchmarks/results") / "gpu-check.json"


@click.command()
@click.option("--model", default="sd15", show_default=True, help="Random weights of this size, or a folder.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--steps", type=click.IntRange(min=2), default=50, show_default=True)
@click.option(
    "--row",
    "names",
    multiple=True,
    type=click.Choice([row.name for row in (*ROWS, ON_CPU[-1])]),
    help="Only these; all by default.",
)
@click.option("--budget", default=450.0, show_default=True, help="Seconds for all rows.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/gpu_check"), show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write here; $OUT/gpu-check.json by default.")
def gpu_check(
    model: str, device: str, steps: int, names: tuple[str, ...], budget: float, work: Path, out: Path | None
) -> None:  # fmt: skip
    """Measure U-Net rows with guidance, whole images and how far the U-Net is off float32: a row for each way."""
    from ldmrt.runtime.files.writing import write_atomically
    from ldmrt.runtime.host import processor, versions

    on = gpu_name() if device == "cuda" else "no GPU was used"
    rows = [row for row in (ROWS if device == "cuda" else ON_CPU) if not names or row.name in names]
    options = ["--model", model, "--device", device, "--steps", str(steps), "--work", str(work)]
    about = {"gpu": on, "cpu": processor(), "versions": versions(), "model": model, "device": device, "steps": steps}
    outcomes: list[Outcome] = []
    for outcome in measure(rows, child(options), budget):
        outcomes.append(outcome)
        click.echo(f"{outcome.title}: {outcome.why or 'done'}, {outcome.took:.0f} s", err=True)
        with write_atomically(place_of(out)) as file:  # after each: whatever happens, what was measured stays
            file.write(json.dumps({"about": about, "rows": [asdict(one) for one in outcomes]}, indent=1).encode())
    click.echo(f"{on}; {model}, {steps} steps, guidance\n{table(outcomes, steps)}\n{place_of(out)}")


def main() -> None:
    """Run the check; an `LdmrtError` is printed as one line, with exit code 2."""
    from ldmrt.runtime.errors import LdmrtError

    try:
        gpu_check()
    except LdmrtError as error:
        click.echo(f"error: {error.where}: {error.problem}; with --device cpu it measures without a GPU", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
