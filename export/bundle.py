"""A bundle written as a whole: into a folder beside its place, then moved there."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldmrt.model import Checkpoint
from ldmrt.model.checkpoint import write_json
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.bundle import MANIFEST, SCHEMA, Bundle
from ldmrt.runtime.files import sha256
from ldmrt.runtime.specs import TensorSpec

from .components import COMPONENTS, Component
from .onnx import OPSET, to_onnx

MODEL_INDEX = {
    "_class_name": "OnnxStableDiffusionPipeline",
    "feature_extractor": [None, None],
    "safety_checker": [None, None],
    "text_encoder": ["diffusers", "OnnxRuntimeModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "OnnxRuntimeModel"],
    "vae_decoder": ["diffusers", "OnnxRuntimeModel"],
    "vae_encoder": ["diffusers", "OnnxRuntimeModel"],
}


@dataclass(frozen=True)
class Exported:
    """What became of one component."""

    component: str
    reused: bool


def export_bundle(checkpoint: Checkpoint, path: Path) -> Iterator[Exported]:
    """Export every component to a bundle at `path` and yield after each.

    A component whose weights, config and exporter are those of the bundle already there is taken from it, and files
    that the old manifest does not name stay. The bundle changes only after the last component: until then, and after
    any failure, the old one stands.
    """
    path = path.resolve()
    old = _old_manifest(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        rows: dict[str, Any] = {}
        for name, component in COMPONENTS.items():
            rows[name] = _row(component, checkpoint)
            reused = old.get("made_by") == made_by() and old["components"].get(name) == rows[name]
            if reused:
                shutil.copytree(path / name, work / name)
            else:
                to_onnx(component, checkpoint, work / name)
                write_json(work / name / "config.json", component.config(checkpoint))
            yield Exported(name, reused)
        for name, content in checkpoint.tokenizer.items():
            (work / "tokenizer").mkdir(exist_ok=True)
            (work / "tokenizer" / name).write_bytes(content)
        write_json(work / "scheduler" / "scheduler_config.json", checkpoint.scheduler)
        scheduler = ["diffusers", checkpoint.scheduler["_class_name"]]
        write_json(work / "model_index.json", {**MODEL_INDEX, "scheduler": scheduler})
        write_json(work / MANIFEST, _manifest(checkpoint, rows, work))
        _carry_over(path, work, {MANIFEST, *old.get("files", {})})
        _swap(work, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def fingerprint(component: Component, checkpoint: Checkpoint) -> dict[str, str]:
    """What a component is made of: the SHA-256 of its weights, and of its config with its inputs and outputs."""
    module = component.module(checkpoint)
    weights = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        weights.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        weights.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    described = [
        component.config(checkpoint),
        _specs(component.inputs(checkpoint)),
        _specs(component.outputs(checkpoint)),
    ]
    config = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    return {"weights": weights.hexdigest(), "config": config.hexdigest()}


def made_by() -> dict[str, str]:
    """Versions that decide what an export looks like."""
    return {name: importlib.metadata.version(name) for name in ("ldmrt", "torch", "onnx", "onnxscript", "transformers")}


def _old_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a bundle that is already there and whole; a folder of anything else is not touched."""
    if not path.exists():
        return {}
    if not path.is_dir() or (any(path.iterdir()) and not (path / MANIFEST).is_file()):
        raise LdmrtError("export", f"{path} is there and is no bundle", expected="a new folder or an old bundle")
    try:
        opened = Bundle.open(path)
        return {"components": {}, **opened.manifest}
    except LdmrtError:
        return {}  # damaged: made anew


def _row(component: Component, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "precision": "fp32",
        "opset": OPSET,
        **fingerprint(component, checkpoint),
        "inputs": _specs(component.inputs(checkpoint)),
        "outputs": _specs(component.outputs(checkpoint)),
    }


def _specs(specs: tuple[TensorSpec, ...]) -> list[Any]:
    return [[spec.name, spec.dtype, list(spec.shape)] for spec in specs]


def _manifest(checkpoint: Checkpoint, rows: dict[str, Any], folder: Path) -> dict[str, Any]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        "schema": SCHEMA,
        "made_by": made_by(),
        "prediction_type": checkpoint.scheduler.get("prediction_type", "epsilon"),
        "scaling_factor": checkpoint.vae.config.scaling_factor,
        "components": rows,
        "files": {
            file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": sha256(file)} for file in files
        },
    }


def _carry_over(old: Path, new: Path, made: set[str]) -> None:
    """Keep what a user, or a build of engines, has put into the old bundle."""
    for file in old.rglob("*") if old.is_dir() else ():
        name = file.relative_to(old)
        if file.is_file() and name.as_posix() not in made and not (new / name).exists():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, new / name)


def _swap(new: Path, place: Path) -> None:
    """Put the folder `new` in its place; what stood there goes only when the new one stands."""
    os.chmod(new, 0o755)  # mkdtemp's is private
    if not place.exists():
        os.rename(new, place)
        return
    old = new.with_suffix(".old")
    os.rename(place, old)
    try:
        os.rename(new, place)
    except BaseException:
        with contextlib.suppress(OSError):
            os.rename(old, place)
        raise
    shutil.rmtree(old)
