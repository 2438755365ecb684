"""Measure a row of `tools/gpu_check.sh`; each runs in its own process, so a crash or hang affects no other row.

    python -m ldmrt.tools.benchmarks.gpu_rows eager --work build/gpu_check

prints a JSON object with what was measured, last. `build` of the engines is part of a row, not of its figures.
"""

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ldmrt.runtime.pipeline.pipeline import Pipeline
    from ldmrt.runtime.pipeline.request.request import Request

Values = dict[str, object]  # what JSON holds of a row
WARM, REPEATS, ROWS = 3, 3, 20
PARITY = "parity.npz"


@dataclass(frozen=True)
class Setting:
    """The settings that all rows of a check share."""

    model: str  # a family of random_checkpoint, or the folder of a checkpoint
    device: str
    steps: int
    work: Path

    @property
    def bundle(self) -> Path:
        """Return the folder of the bundle that the row `bundle` exports."""
        return self.work / "bundle"


def timed(run: Callable[[], object], wait: Callable[[], None], repeats: int = REPEATS) -> float:
    """Return the median of the seconds until the device has finished."""
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        wait()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def off(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest expected value."""
    return float(np.abs(actual.astype(np.float32) - expected).max() / np.abs(expected).max())


def reference(setting: Setting) -> Values:
    """Run PyTorch in float32, without TF32, and save its output as the reference of all other rows."""
    import torch

    from .gpu_torch import TorchModel

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    model = TorchModel.make(setting.model, setting.device, torch.float32, setting.steps)
    random = np.random.default_rng(0)
    inputs = {
        "sample": random.normal(size=(2, *model.latent[1:])).astype(np.float32),
        "timestep": np.array([501.0, 501.0], np.float32),
        "encoder_hidden_states": model.context().float().cpu().numpy(),
    }
    out = model.network(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    setting.work.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {**inputs, "out_sample": out.cpu().numpy()}
    np.savez(setting.work / PARITY, **arrays)
    return {"torch": torch.__version__, "largest": float(out.abs().max())}


def parity(setting: Setting, network: Callable[..., NDArray[np.floating]]) -> float | None:
    """Return how far a U-Net's output is off the reference; None without a reference."""
    if not (setting.work / PARITY).is_file():
        return None
    stored = dict(np.load(setting.work / PARITY))
    expected = stored.pop("out_sample")
    return off(np.asarray(network(**stored)), expected)


def pytorch(setting: Setting, *, compiled: bool) -> Values:
    """Measure PyTorch: float16 and channels last on a GPU, float32 on a CPU, which is slow in float16."""
    import torch

    from .gpu_torch import TorchModel

    torch.backends.cudnn.benchmark = True
    dtype = torch.float32 if setting.device == "cpu" else torch.float16
    model = TorchModel.make(setting.model, setting.device, dtype, setting.steps, compiled=compiled)
    measured = parity(
        setting, lambda **a: model.network(**{name: torch.from_numpy(array) for name, array in a.items()}).cpu().numpy()
    )
    context, rows = model.context(), min(ROWS, setting.steps)
    model.walk(context, WARM)
    model.image()
    seconds = timed(lambda: model.walk(context, rows), model.wait)
    return {"rows_per_s": rows / seconds, "seconds": timed(model.image, model.wait), "off": measured}


def bundle(setting: Setting) -> Values:
    """Export the model to ONNX, in the precision of the torch rows."""
    from ldmrt.export.bundle_writer import export_bundle
    from ldmrt.runtime.bundle.bundle import Bundle

    from .gpu_torch import checkpoint_of

    begin = time.perf_counter()
    checkpoint = checkpoint_of(setting.model, setting.device)
    for network in checkpoint.networks.values():
        network.cpu().float() if setting.device == "cpu" else network.cpu().half()
    for _ in export_bundle(checkpoint, setting.bundle):
        pass
    precision = Bundle.open(setting.bundle, check=False).precision("unet")
    return {"export_s": time.perf_counter() - begin, "precision": precision}


def backend(setting: Setting, name: str) -> Values:
    """Measure a backend of the runtime from prompt to image, with latents on the host between rows."""
    from ldmrt.runtime.pipeline.opening import open_pipeline

    built = engines(setting.bundle, name) if name.startswith("tensorrt") else 0.0
    pipeline = open_pipeline(setting.bundle, name, check=False, fused=False)
    measured = parity(setting, lambda **arrays: pipeline.engines["unet"](**arrays)["out_sample"])
    values = {**drawn(setting, pipeline), "off": measured}
    if name.startswith("tensorrt"):
        values |= {"build_s": built, "launches_per_s": launches(setting, pipeline.engines["unet"])}
    pipeline.close()
    return values


def drawn(setting: Setting, pipeline: "Pipeline") -> Values:
    """Measure how fast a pipeline makes images, from the second one on."""
    request = request_of(setting)
    pipeline(request)
    results = [pipeline(request) for _ in range(REPEATS)]
    latents, decode = (
        statistics.median(result.seconds[stage] for result in results) for stage in ("latents", "decode")
    )
    return {"rows_per_s": setting.steps / latents, "seconds": latents + decode}


def request_of(setting: Setting) -> "Request":
    """Return the request of every row."""
    from ldmrt.runtime.pipeline.request.request import Request

    from .gpu_torch import GUIDANCE, PROMPT, SCHEDULER

    return Request(PROMPT, num_inference_steps=setting.steps, guidance_scale=GUIDANCE, scheduler=SCHEDULER)


def fused(setting: Setting, name: str) -> Values:
    """Measure the fused step on a backend, where nothing comes to the host between rows.

    Its latents after all rows are compared with those of the loop on the U-Net's own engine.
    """
    from ldmrt.runtime.bundle.graphs import STEP
    from ldmrt.runtime.errors import LdmrtError
    from ldmrt.runtime.pipeline.opening import open_pipeline

    built = engines(setting.bundle, name, only=STEP) if name.startswith("tensorrt") else 0.0
    pipeline = open_pipeline(setting.bundle, name, check=False, fused=True)
    task = pipeline.prepare(request_of(setting))
    if task.fused is None:
        raise LdmrtError(STEP, "its engine did not run")
    measured = off(task.last(), replace(task, fused=None).last())
    values = {**drawn(setting, pipeline), "off": measured, "build_s": built}
    pipeline.close()
    return values


def launches(setting: Setting, unet: Any) -> float:
    """Measure the U-Net's launches per second if nothing leaves the GPU: the limit of a fused loop."""
    stored = dict(np.load(setting.work / PARITY))
    arrays = {spec.name: stored[spec.name].astype(spec.dtype) for spec in unet.inputs}
    binding = unet.bind({name: array.shape for name, array in arrays.items()})
    binding.upload(**arrays)
    for _ in range(WARM):
        binding.launch()
    binding.synchronize()

    def run() -> None:
        for _ in range(ROWS):
            binding.launch()

    return ROWS / timed(run, binding.synchronize)


def engines(folder: Path, name: str, target: str | None = None, only: str = "") -> float:
    """Build the engines for one image with guidance, of all components or one graph; return the seconds."""
    from ldmrt.export.engines import compiler
    from ldmrt.export.engines.build import build, decide
    from ldmrt.export.engines.profiles import Wanted, recipes
    from ldmrt.runtime.backends.gpu import compute_capability
    from ldmrt.runtime.bundle.bundle import Bundle

    opened, begin = Bundle.open(folder, check=False), time.perf_counter()
    targets = [target or compute_capability()]
    version = compiler.version(name)
    compiler.check_targets(name, targets, ())
    wanted, graphs = Wanted.read(None, "1", "on", opened.stage.size), [only] if only else None
    wished = recipes(opened, wanted, backend=name, version=version, targets=targets, graphs=graphs)
    for _ in build(opened, decide(folder, wished)):
        pass
    return time.perf_counter() - begin


def portable(setting: Setting) -> Values:
    """Find out whether a portable engine of TensorRT-RTX runs on this GPU: ask the library, then run the U-Net."""
    from ldmrt.runtime.backends.trt.cuda_graph import Binding
    from ldmrt.runtime.backends.trt.loaded_engine import LoadedPlan, validity_of
    from ldmrt.runtime.backends.trt.session import Session
    from ldmrt.runtime.bundle.bundle import Bundle
    from ldmrt.runtime.bundle.engines.store import EngineFile
    from ldmrt.runtime.bundle.engines.store import engines as engine_files

    built = engines(setting.bundle, "tensorrt-rtx", "portable", "unet")
    opened, session = Bundle.open(setting.bundle, check=False), Session("tensorrt-rtx")
    (file,) = (
        file
        for file in engine_files(setting.bundle)
        if isinstance(file, EngineFile) and (file.recipe.target, file.recipe.component) == ("portable", "unet")
    )
    validity, why = validity_of(session, file.read(opened))
    click.echo(f"TensorRT-RTX says {validity}: {why}", err=True)
    plan = LoadedPlan(session, file, opened)  # refuses an engine that is not valid

    def network(**arrays: np.ndarray) -> np.ndarray:
        cast = {spec.name: arrays[spec.name].astype(spec.dtype) for spec in plan.inputs}
        binding = Binding(plan, {name: array.shape for name, array in cast.items()})
        with contextlib.closing(binding):
            binding.upload(**cast)
            binding.launch()
            return binding.download()["out_sample"]

    with contextlib.closing(plan):
        return {"validity": validity, "why": why, "build_s": built, "off": parity(setting, network)}


MEASURES: dict[str, Callable[[Setting], Values]] = {
    "reference": reference,
    "eager": lambda setting: pytorch(setting, compiled=False),
    "compile": lambda setting: pytorch(setting, compiled=True),
    "bundle": bundle,
    "portable": portable,
    "onnxruntime": lambda setting: backend(setting, "onnxruntime"),
    "onnxruntime-cuda": lambda setting: backend(setting, "onnxruntime-cuda"),
    "onnxruntime-cuda-folded": lambda setting: fused(setting, "onnxruntime-cuda"),
    "tensorrt-rtx": lambda setting: backend(setting, "tensorrt-rtx"),
    "tensorrt": lambda setting: backend(setting, "tensorrt"),
    "tensorrt-rtx-folded": lambda setting: fused(setting, "tensorrt-rtx"),
    "tensorrt-folded": lambda setting: fused(setting, "tensorrt"),
}


@click.command()
@click.argument("name", type=click.Choice(list(MEASURES)))
@click.option("--model", default="sd15", show_default=True)
@click.option("--device", default="cuda", show_default=True)
@click.option("--steps", default=50, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), required=True)
def row(name: str, model: str, device: str, steps: int, work: Path) -> None:
    """Measure one row and print its values as JSON."""
    from ldmrt.runtime.errors import LdmrtError

    try:
        click.echo(json.dumps(MEASURES[name](Setting(model, device, steps, work))))
    except LdmrtError as error:
        click.echo(f"error: {str(error).splitlines()[0]}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    row()
