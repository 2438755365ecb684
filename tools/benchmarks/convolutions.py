"""Measure what rewritten convolutions and fixed sizes gain on a backend: one network's graphs by turns in one process.

    python -m ldmrt.tools.benchmarks.convolutions CHECKPOINT --network vae_decoder --side 64

Exports the network twice, as bundles hold it and with PyTorch's convolutions, and runs both on the same inputs.
"""

import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.console.script import run_script

if TYPE_CHECKING:
    from ldmrt.export.components.component import Component
    from ldmrt.runtime.tensors import Array, Arrays, Engine

SIZES = ("any sizes", "fixed sizes")


@dataclass
class Contestant:
    """A graph, how its network was opened, and its measurements."""

    graph: str  # "rewritten" or "plain"
    sizes: str
    wall: list[float] = field(default_factory=list)  # seconds of each call
    cpu: list[float] = field(default_factory=list)  # seconds of all threads of each call
    error: float = 0.0  # largest difference from the first contestant's results, relative to their largest number

    def ratio(self, other: "Contestant") -> tuple[float, float]:
        """Return the medians of this one's wall and CPU seconds relative to another's, call by call."""
        pairs = (self.wall, other.wall), (self.cpu, other.cpu)
        wall, cpu = (statistics.median(a / b for a, b in zip(*pair, strict=True)) for pair in pairs)
        return wall, cpu


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.option("--network", default="unet", show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--side", type=click.IntRange(min=16), default=64, show_default=True, help="Pixels of the image.")
@click.option("--calls", type=click.IntRange(min=1), default=41, show_default=True, help="Of each graph.")
@click.option("--backend", type=click.Choice(["openvino", "onnxruntime"]), default="openvino", show_default=True)
@click.option(
    "--compute", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True, help="OpenVINO's."
)
@click.option("--fixed", is_flag=True, help="Also with networks for these sizes alone (OpenVINO).")
@click.option("--json", "out", type=Output(), help="Write the numbers here too.")
def measure(
    checkpoint: Path,
    network: str,
    batch: int,
    side: int,
    calls: int,
    backend: str,
    compute: str,
    fixed: bool,
    out: Path | None,
) -> None:
    """Time the graphs of one network of CHECKPOINT on a backend, beside each other."""
    from ldmrt.export.components.table import components, example
    from ldmrt.model.checkpoint.load import load
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.files.writing import write_atomically
    from ldmrt.runtime.host import processor, versions

    known = components(load(checkpoint))
    if network not in known:
        raise LdmrtError("network", f"no network {network!r}", expected=", ".join(known))
    if (fixed or compute != "fp32") and backend != "openvino":
        problem = "only OpenVINO opens networks for fixed sizes and in other precisions"
        raise LdmrtError("backend", problem, hint="--backend openvino")
    component = known.pop(network)
    known.clear()
    feeds = example(component, {"batch": batch, "timesteps": batch, "height": side, "width": side})
    with tempfile.TemporaryDirectory() as folder:
        opened = partial(_open, component, backend, compute)
        contestants = _run(component, Path(folder), feeds, opened, SIZES if fixed else SIZES[:1], calls)
    first = contestants[0]
    for one in contestants:
        wall, cpu = one.ratio(first)
        seconds = statistics.median(one.wall)
        click.echo(f"{one.graph}, {one.sizes}: {seconds * 1e3:.2f} ms, {wall:.3f} of the first's time and {cpu:.3f} of "
                   f"its CPU time, results differ by {one.error:.1e}")  # fmt: skip
    if out is not None:
        about = {**versions(), "cpu": processor(), "load": list(os.getloadavg()), "network": network, "batch": batch,
                 "side": side, "backend": backend, "compute": compute}  # fmt: skip
        with write_atomically(out) as file:
            file.write(json.dumps({"about": about, "contestants": [asdict(one) for one in contestants]}).encode())


def _run(
    component: "Component",
    folder: Path,
    feeds: "Arrays",
    opened: "Callable[[Path, str], Engine]",
    sizes: tuple[str, ...],
    calls: int,
) -> list[Contestant]:
    """Export a network both ways, and call all its graphs by turns, in a new order each time."""
    from ldmrt.export.graph.to_onnx import to_onnx

    networks: list[tuple[Contestant, Engine]] = []
    for graph in ("rewritten", "plain"):
        path = to_onnx(component, folder / graph, rewritten=graph == "rewritten")
        networks += ((Contestant(graph, one), opened(path, one)) for one in sizes)
    expected: dict[str, Array] = {}
    for one, engine in networks:
        results = engine(**feeds)
        expected = expected or results
        one.error = max(float(np.abs(results[name] - e).max() / np.abs(e).max()) for name, e in expected.items())
    order = random.Random(0)
    for _ in range(calls):
        for one, engine in order.sample(networks, len(networks)):
            wall, cpu = time.perf_counter(), time.process_time()
            engine(**feeds)
            one.wall.append(time.perf_counter() - wall)
            one.cpu.append(time.process_time() - cpu)
    return [one for one, _ in networks]


def _open(component: "Component", backend: str, compute: str, path: Path, sizes: str) -> "Engine":
    """Open a graph for any sizes, or for those of the first call."""
    from ldmrt.runtime.backends.openvino.engine import OpenVinoEngine
    from ldmrt.runtime.backends.ort.engine import OrtEngine

    if backend == "onnxruntime":
        return OrtEngine(component.name, path, spin=False)  # its threads would take the cores from the next
    specs = component.inputs, component.outputs
    fixed_after = 1 if sizes == "fixed sizes" else None
    return OpenVinoEngine(component.name, path, compute=compute, specs=specs, fixed_after=fixed_after)


if __name__ == "__main__":
    run_script(measure)
