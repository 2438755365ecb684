"""Measure what a LoRA at run time costs: the time of the network's rows with it, of that without, by turns.

    python -m ldmrt.tools.benchmarks.speed.loras model/pretrained/emoji64 out/emoji64 --json out/loras.json

The LoRAs are random, of rank 16: for matrices alone, then for convolutions too. A set that was not drawn with before
also takes the time to compute its weights and to hand them to the backend.
"""

import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ldmrt.tools.console.outputs import Output
from ldmrt.tools.console.script import run_script

if TYPE_CHECKING:
    from torch import Tensor, nn

RANK = 16
PROMPT = "a red apple, noto style, blue background"
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


def factors(network: "nn.Module", kinds: "tuple[type[nn.Module], ...]") -> "dict[str, Tensor]":
    """Make a random LoRA, in PEFT's names, for all layers of these kinds in a U-Net."""
    import torch

    state: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, kinds):
            weight = module.weight
            assert isinstance(weight, torch.Tensor)
            out, *shape = weight.shape
            one = (1,) * (len(shape) - 1)
            state[f"unet.{name}.lora_A.weight"] = torch.randn(RANK, *shape) * 1e-3
            state[f"unet.{name}.lora_B.weight"] = torch.randn(out, RANK, *one) * 1e-3
    return state


@click.command()
@click.argument("checkpoint", type=FOLDER)
@click.argument("bundle", type=FOLDER)
@click.option("--steps", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=10, show_default=True, help="Images of each.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--backend", default="onnxruntime", show_default=True, help="One that replaces weights.")
@click.option("--json", "out", type=Output(), help="Write the numbers here too.")
def bench(
    checkpoint: Path, bundle: Path, steps: int, rounds: int, threads: int, backend: str, out: Path | None
) -> None:
    """Time images of BUNDLE with LoRAs made for its CHECKPOINT, relative to those without one."""
    import torch
    from rich.console import Console
    from rich.table import Table
    from safetensors.torch import save_file
    from torch import nn

    from ldmrt.model.checkpoint.load import load
    from ldmrt.runtime.files.writing import write_atomically
    from ldmrt.runtime.host import processor, versions
    from ldmrt.runtime.pipeline.opening import open_pipeline

    torch.manual_seed(0)
    network = load(checkpoint).denoiser
    kinds = {"matrices": (nn.Linear,), "matrices and convolutions": (nn.Linear, nn.Conv2d)}
    chosen: dict[str, Mapping[str, float]] = {"without": {}}
    seconds, changes = {"without": list[float]()}, {"without": [0.0]}
    with tempfile.TemporaryDirectory() as folder, open_pipeline(bundle, backend, threads=threads) as pipeline:
        for number, (title, layers) in enumerate(kinds.items()):
            path = Path(folder) / f"{number}.safetensors"
            save_file(factors(network, layers), path)
            chosen[title], seconds[title], changes[title] = {pipeline.load_lora(path): 1.0}, [], []

        def draw(loras: Mapping[str, float]) -> float:
            drawn = pipeline(PROMPT, num_inference_steps=steps, output_type="latent", loras=loras)
            return drawn.seconds["latents"]

        for each in range(-1, rounds):  # the first opens sessions
            for title, loras in chosen.items():
                latents = draw(loras)
                if each >= 0:
                    seconds[title].append(latents)
        for each in range(rounds):
            for title, loras in list(chosen.items())[1:]:
                new = dict.fromkeys(loras, 1 + (each + 1) / 100)
                changes[title].append(draw(new) - draw(new))
    title = f"{bundle.name}, {backend}, {steps} steps, {threads} threads"
    table = Table("LoRA", "seconds", "of that without", "a new set, seconds", title=title)
    rows = []
    for title, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(taken, seconds["without"], strict=True))
        change = statistics.median(changes[title])
        rows.append({"lora": title, "seconds": statistics.median(taken), "ratio": ratio, "change": change})
        table.add_row(title, f"{statistics.median(taken):.3f}", f"{ratio:.3f}", f"{change:.3f}")
    Console().print(table)
    if out is not None:
        about = {
            "backend": backend,
            "steps": steps,
            "rounds": rounds,
            "threads": threads,
            "rank": RANK,
            "cpu": processor(),
        }
        with write_atomically(out) as file:
            file.write(json.dumps({"about": {**about, "versions": versions()}, "rows": rows}, indent=2).encode())


if __name__ == "__main__":
    run_script(bench)
