"""Measure every step of a model of full size, beside other exporters in the same run.

    python -m ldmrt.tools.benchmarks.full_size sd15 --json tools/benchmarks/results/full-size/sd15.json

Every step is a process of its own, as a user would start it; its peak is the most memory that was resident at once.
"""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldmrt.runtime.bundle.engines.store import FOLDER as ENGINES
from ldmrt.tools.console.outputs import Output
from ldmrt.tools.console.processes import run
from ldmrt.tools.console.script import run_script

from .checkpoints.random_checkpoint import NAMES
from .checkpoints.random_transformer import FAMILIES as TRANSFORMERS

if TYPE_CHECKING:
    from ldmrt.runtime.files.reading import JsonObject

OPTIMUM = "import sys; from optimum.exporters.onnx import main_export as export; "
OPTIMUM += "export(sys.argv[1], output=sys.argv[2], task='text-to-image', library_name='diffusers', "
OPTIMUM += "do_validation=False, dtype=sys.argv[3])"
STEPS = ("export", "again", "torch", "optimum", "verify", "generate", "build")


@click.command()
@click.argument("family", type=click.Choice([*NAMES, *TRANSFORMERS]))
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp32", show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/full_size"), show_default=True)
@click.option("--step", "steps", multiple=True, type=click.Choice(STEPS), help="Only these; all by default.")
@click.option("--optimum", "other", type=click.Path(exists=True), help="A Python that has optimum-onnx.")
@click.option("--target", default="sm89", show_default=True, help="The GPUs that engines are built for.")
@click.option("--components", help="Engines of these alone, such as transformer,vae_decoder.")
@click.option("--layers", type=click.IntRange(1), help="At most so many layers, in full width; transformers only.")
@click.option("--side", default=256, show_default=True, help="Pixels of the images.")
@click.option("--json", "out", type=Output(), help="Write the numbers here too.")
def full_size(
    family: str, precision: str, work: Path, steps: tuple[str, ...], other: str | None, target: str,
    components: str | None, layers: int | None, side: int, out: Path | None,
) -> None:  # fmt: skip
    """Measure a random checkpoint of FAMILY at full size.

    It is exported twice, verified by an image of 20 steps and used for one of 2; engines are built for its own size.
    """
    from rich.console import Console
    from rich.table import Table

    from ldmrt.runtime.files.writing import write_atomically
    from ldmrt.runtime.host import processor

    name = f"{family}-{layers}-layers" if layers else family
    checkpoint, bundle, scrap = (work / f"{name}-{precision}{end}" for end in ("", "-bundle", "-scrap"))
    python, precise = [sys.executable, "-m"], ["--precision", precision]
    ldmrt = [*python, "ldmrt.tools.cli"]
    paths = [str(checkpoint), str(bundle)]
    commands = {
        "export": [*ldmrt, "export", *paths, *precise, "--no-verify"],
        "again": [*ldmrt, "export", *paths, *precise, "--no-verify"],
        "torch": [*python, "ldmrt.tools.benchmarks.plain_export", str(checkpoint), str(scrap), *precise],
        "optimum": [str(other), "-c", OPTIMUM, str(checkpoint), str(scrap), precision],
        "verify": [*ldmrt, "verify", str(bundle), "--against", str(checkpoint), "--store", "--backend", "onnxruntime",
                   "--side", str(side)],
        "generate": [*ldmrt, "generate", str(bundle), "an astronaut", "--steps", "2", "--width", str(side),
                     "--height", str(side), "-o", str(work / f"{name}-{precision}.png")],
        "build": [*ldmrt, "build", str(bundle), "--target", target, "--no-verify",
                  *(["--components", components] if components else [])],
    }  # fmt: skip
    if {*(steps or STEPS)} - {"generate", "build"} and not (checkpoint / "model_index.json").is_file():
        random = "ldmrt.tools.benchmarks.checkpoints.random_checkpoint"
        few = ["--layers", str(layers)] if layers else []
        run("checkpoint", [*python, random, family, str(checkpoint), *precise, *few])
    if not steps or "export" in steps:
        shutil.rmtree(bundle, ignore_errors=True)
    rows = []
    for step in steps or STEPS:
        if step == "optimum" and other is None:
            continue
        if step == "build":
            shutil.rmtree(bundle / ENGINES, ignore_errors=True)
        rows.append(run(step, commands[step]))
        shutil.rmtree(scrap, ignore_errors=True)
    files = [file.stat().st_size / 1e6 for file in bundle.rglob("*.onnx_data")]
    weights, largest = sum(files), max(files) / (2 if precision == "fp32" else 1)
    limit = 1500 + 0.3 * largest
    title = f"{name}, {precision}: {weights:.0f} MB of weights; an export may take {limit:.0f} MB,"
    title += " 1.5 GB and 0.3 of the largest network in half precision"
    table = Table("step", "seconds", "peak MB", title=title)
    for row in rows:
        table.add_row(row.step, f"{row.seconds:.0f}", f"{row.peak:.0f}")
    Console().print(table)
    about = {"family": name, "precision": precision, "weights_mb": weights, "limit_mb": limit, "cpu": processor()}
    numbers: JsonObject = {"about": about, "steps": [asdict(row) for row in rows]}
    if any(row.step == "build" for row in rows):
        numbers["engines"] = compared(bundle)
    if out is not None:
        with write_atomically(out) as file:
            file.write(json.dumps(numbers, indent=2).encode())


def compared(bundle: Path) -> "list[JsonObject]":
    """List the predicted and the measured bytes and seconds of each engine."""
    from ldmrt.export.engines.engine_memory import predict
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.bundle.engines.engine_key import described
    from ldmrt.runtime.bundle.engines.store import EngineFile, engines

    opened, rows = Bundle.open(bundle, check=False), []
    for one in engines(bundle):
        assert isinstance(one, EngineFile)
        before, made = predict(opened, one.recipe), one.recipe
        rows.append({
            "component": made.component, "target": made.target, "library": f"{made.backend} {made.version}",
            "largest_input": described(made.profile),
            "predicted": {"disk": before.disk, "scratch": before.scratch, "weights": before.weights, "io": before.io,
                          "build_peak": before.build},
            "measured": {"disk": one.size, **one.measured},
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    run_script(full_size)
