"""Measure what narrow precisions gain on OpenVINO: one network of a bundle in all of them, by turns in one process.

    python -m ldmrt.tools.benchmarks.precisions BUNDLE --network unet --batch 2 --side 256

int8 takes the ranges that the bundle holds. Where it holds none they are measured on random inputs:
its time does not depend on them.
"""

import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.console.script import run_script

if TYPE_CHECKING:
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.tensors import Arrays, Engine

PRECISIONS = ("fp32", "bf16", "int8")


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--network", default="unet", show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--side", type=click.IntRange(min=16), default=64, show_default=True, help="Pixels of the image.")
@click.option("--calls", type=click.IntRange(min=1), default=41, show_default=True, help="In each precision.")
@click.option("--json", "out", type=Output(), help="Write the numbers here too.")
def measure(bundle: Path, network: str, batch: int, side: int, calls: int, out: Path | None) -> None:
    """Time one network of BUNDLE in float32, bf16 and int8, compiled for these sizes."""
    from ldmrt.runtime.backends.openvino.devices import precisions
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.files.writing import write_atomically
    from ldmrt.runtime.host import processor, versions

    opened, able = Bundle.open(bundle, stamped=True), precisions("CPU")
    feeds = inputs(opened, network, batch, side)
    engines = {name: _open(opened, network, name, feeds) for name in PRECISIONS if name in able}
    expected: Arrays = {}
    errors: dict[str, float] = {}
    for name, engine in engines.items():
        results = engine(**feeds)
        expected = expected or results
        errors[name] = max(float(np.abs(results[one] - e).max() / np.abs(e).max()) for one, e in expected.items())
    wall: dict[str, list[float]] = {name: [] for name in engines}
    order = random.Random(0)
    for _ in range(calls):
        for name in order.sample(list(engines), len(engines)):
            begin = time.perf_counter()
            engines[name](**feeds)
            wall[name].append(time.perf_counter() - begin)
    for name, taken in wall.items():
        ratio = statistics.median(a / b for a, b in zip(taken, wall["fp32"], strict=True))
        click.echo(f"{name}: {statistics.median(taken) * 1e3:.2f} ms, {ratio:.3f} of float32's time, "
                   f"{errors[name]:.1e} from its results")  # fmt: skip
    if out is not None:
        about = {**versions(), "cpu": processor(), "load": list(os.getloadavg()), "network": network, "batch": batch,
                 "side": side}  # fmt: skip
        with write_atomically(out) as file:
            file.write(json.dumps({"about": about, "errors": errors, "wall": wall}).encode())


def inputs(bundle: "Bundle", network: str, batch: int, side: int) -> "Arrays":
    """Return random inputs of a network of one batch, for square images of `side` pixels."""
    from ldmrt.runtime.tensors import shape_of

    generator, specs = np.random.default_rng(0), bundle.specs(network)[0]
    sizes = {"batch": batch, "timesteps": batch, "height": side, "width": side}
    return {spec.name: generator.standard_normal(shape_of(spec, sizes)).astype(spec.dtype) for spec in specs}


def _open(bundle: "Bundle", network: str, compute: str, feeds: "Arrays") -> "Engine":
    """Open a network for the sizes of its first call."""
    from ldmrt.export.precision.calibrate import ranges_of
    from ldmrt.runtime.backends.openvino.engine import OpenVinoEngine
    from ldmrt.runtime.backends.openvino.ranges import read_ranges, stored_in

    ranges = None
    if compute == "int8":
        stored = read_ranges(bundle) if stored_in(bundle.manifest) else {}
        ranges = stored[network].inputs if network in stored else ranges_of(bundle, network, [feeds])
    path, specs = bundle.model(network), bundle.specs(network)
    return OpenVinoEngine(network, path, compute=compute, ranges=ranges, specs=specs, fixed_first=True)


if __name__ == "__main__":
    run_script(measure)
