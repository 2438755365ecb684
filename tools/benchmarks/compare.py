"""Make images of one model with several programs in turns; compare their times, memory and images.

    python -m ldmrt.tools.benchmarks.compare model/pretrained/emoji64 out/emoji64 --json out/compare.json

The same weights, first latents, sampler, steps and threads, each program in a process of its own. A speed whose image
differs from diffusers' is not shown.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.console.script import run_script

from .contestant import Ask
from .race import REFERENCE, Contestant, race, ratio

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}  # OpenVINO's property; by default it computes in bf16 where a CPU has it


def ldmrt_contestants(
    bundle: Path,
    precision: str,
    options: dict[str, object],
    low_memory: bool,
    backends: Sequence[str],
    computes: Sequence[str],
) -> list[Contestant]:
    """List ldmrt itself, with low memory, and on other backends: at the bundle's precision, then at each of `computes`.

    Args:
        bundle: The bundle's folder.
        precision: The coarsest of the bundle's networks.
        options: Arguments of `open_pipeline` for all of them.
        low_memory: Adds ldmrt with one component in memory at a time.
        backends: Names for `open_pipeline`.
        computes: Precisions for `open_pipeline` with OpenVINO, coarser than the bundle's.

    Raises:
        LdmrtError: There is no backend of one of the names.
    """
    from ldmrt.runtime.backends.registry import check_name
    from ldmrt.runtime.parity.tolerances import coarsest

    contestants = [Contestant("ldmrt", sys.executable, bundle, options, precision)]
    if low_memory:
        low = {**options, "low_memory": True}
        contestants.append(Contestant("ldmrt, low memory", sys.executable, bundle, low, precision))
    for backend in backends:
        check_name(backend)
        on_backend = {**options, "backend": backend}
        contestants.append(Contestant(f"ldmrt, {backend}", sys.executable, bundle, on_backend, precision))
        for compute in computes if backend.startswith("openvino") else ():  # no other backend has a choice
            name, computed = f"ldmrt, {backend} {compute}", {**on_backend, "compute": compute}
            contestants.append(Contestant(name, sys.executable, bundle, computed, coarsest(precision, compute)))
    return contestants


def openvino_contestants(python: str, exported: Path, threads: int) -> list[Contestant]:
    """List optimum-intel and OpenVINO GenAI on optimum-intel's export, each with its defaults and in float32."""
    options: dict[str, object] = {"INFERENCE_NUM_THREADS": threads}
    return [
        contestant
        for name in ("optimum-intel", "GenAI")
        for contestant in (
            Contestant(name, python, exported, options, "bf16"),
            Contestant(f"{name}, float32", python, exported, {**options, **FLOAT32}),
        )
    ]


def selection(contestants: list[Contestant], names: Sequence[str]) -> list[Contestant]:
    """Return the reference and the contestants of these names; all if there are none.

    Raises:
        UsageError: No contestant has one of the names.
    """
    known = [contestant.name for contestant in contestants]
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(f"--only: no contestant is {unknown[0]!r}; expected: one of {', '.join(known)}")
    return [one for one in contestants if not names or one.name in {REFERENCE, *names}]


@click.command()
@click.argument("checkpoint", type=FOLDER)
@click.argument("bundle", type=FOLDER)
@click.option("--prompt", default="a red apple, noto style, blue background", show_default=True)
@click.option("--side", type=click.IntRange(8), help="Pixels; the model's own size by default.")
@click.option("--steps", default=20, show_default=True)
@click.option("--guidance", default=5.0, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=10, show_default=True, help="Images of each, after a first one.")
@click.option("--compiled", is_flag=True, help="Also diffusers with its U-Net through torch.compile.")
@click.option("--low-memory", is_flag=True, help="Also ldmrt with one component in memory at a time.")
@click.option("--keep-optimized", is_flag=True, help="ldmrt keeps networks in BUNDLE, and starts from those there.")
@click.option("--backend", "backends", multiple=True, help="Also ldmrt on this backend.")
@click.option(
    "--compute",
    "computes",
    multiple=True,
    type=click.Choice(["bf16", "fp16", "int8"]),
    help="With --backend: at this precision too.",
)
@click.option("--optimum", type=click.Path(exists=True), help="A Python that has optimum-onnx: also that.")
@click.option("--exported", type=FOLDER, help="With --optimum: on its own export too.")
@click.option(
    "--openvino", type=click.Path(exists=True), help="A Python that has optimum-intel and OpenVINO GenAI: also those."
)
@click.option("--exported-openvino", type=FOLDER, help="With --openvino: optimum-intel's export, in float32.")
@click.option("--only", multiple=True, metavar="NAME", help="Beside diffusers only this contestant; all by default.")
@click.option("--json", "out", type=Output(), help="Write the numbers here too.")
def compare(
    checkpoint: Path,
    bundle: Path,
    prompt: str,
    side: int | None,
    steps: int,
    guidance: float,
    threads: int,
    rounds: int,
    compiled: bool,
    low_memory: bool,
    keep_optimized: bool,
    backends: Sequence[str],
    computes: Sequence[str],
    optimum: str | None,
    exported: Path | None,
    openvino: str | None,
    exported_openvino: Path | None,
    only: Sequence[str],
    out: Path | None,
) -> None:
    """Make one image with diffusers on CHECKPOINT and with ldmrt on BUNDLE, in turns."""
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.files.writing import write_atomically
    from ldmrt.runtime.host import processor, versions
    from ldmrt.runtime.parity.tolerances import coarsest
    from ldmrt.runtime.samplers.noise.counter import noise

    if computes and not backends:
        raise click.UsageError("--compute needs --backend: it says how that backend computes")
    if (openvino is None) != (exported_openvino is None):
        raise click.UsageError("--openvino and --exported-openvino need each other; expected: both or neither")
    opened = Bundle.open(bundle)
    side = side or opened.stage.size
    precision = coarsest(*map(opened.precision, opened.components))
    options: dict[str, object] = {"threads": threads, "keep_optimized": keep_optimized}
    contestants = [
        Contestant(REFERENCE, sys.executable, checkpoint),
        *ldmrt_contestants(bundle, precision, options, low_memory, backends, computes),
    ]
    if compiled:
        contestants.append(Contestant("torch.compile", sys.executable, checkpoint))
    if optimum:
        contestants.append(Contestant("optimum", optimum, bundle, precision=precision))
        contestants += [Contestant("optimum, own export", optimum, exported)] if exported else []
    if openvino and exported_openvino:
        contestants += openvino_contestants(openvino, exported_openvino, threads)
    contestants = selection(contestants, only)
    with tempfile.TemporaryDirectory() as folder:
        space = opened.stage.space
        latents = noise([0], 0, (space.channels, side // space.factor, side // space.factor))
        np.save(f"{folder}/noise.npy", latents)
        ask: Ask = {"prompt": prompt, "width": side, "height": side, "steps": steps, "guidance": guidance}
        race(contestants, {**ask, "threads": threads, "noise": f"{folder}/noise.npy"}, rounds, Path(folder))
    show(contestants, f"{bundle.name}, {side}x{side}, {steps} steps, guidance {guidance:g}, {threads} threads")
    if out is not None:
        about = {**ask, "threads": threads, "rounds": rounds, "cpu": processor(), "versions": versions()}
        rows = [{**asdict(each), "ratio": ratio(each, contestants[0])} for each in contestants]
        for row in rows:
            row.pop("python"), row.pop("path"), row.pop("options")
            row["psnr"] = row["psnr"] if np.isfinite(row["psnr"]) else "identical"
        with write_atomically(out) as file:
            file.write(json.dumps({"about": about, "contestants": rows}, indent=2).encode())
    if different := [each for each in contestants if each.psnr < each.least]:
        expected = ", ".join(f"{each.name} >= {each.least:g} dB to {REFERENCE}'" for each in different)
        found = ", ".join(f"{each.psnr:.1f} dB" for each in different)
        raise LdmrtError("compare", "the images differ", expected=expected, found=found)


def show(contestants: list[Contestant], title: str) -> None:
    """Print a table; a speed whose image has a PSNR below the contestant's least is not shown."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in ("", "seconds", f"of {REFERENCE}'", "first image", "peak MB", "PSNR dB"):
        table.add_column(name, justify="left" if not name else "right")
    for contestant in contestants:
        speed = ["", ""]
        if contestant.psnr >= contestant.least:
            speed = [f"{statistics.median(contestant.seconds):.3f}", f"{ratio(contestant, contestants[0]):.3f}"]
        first = f"{contestant.ready + contestant.first:.2f}"
        table.add_row(contestant.name, *speed, first, f"{contestant.peak / 1e6:.0f}", f"{contestant.psnr:.1f}")
    Console().print(table)


if __name__ == "__main__":
    run_script(compare)
