"""A bundle written as a whole: into a folder beside its place, then moved there."""

import contextlib
import importlib.metadata
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmrt.model.checkpoint.checkpoint import Checkpoint, write_json
from ldmrt.runtime.backends.ort.graph_cache import FOLDER as OPTIMIZED
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.contents import is_inside, is_name
from ldmrt.runtime.bundle.graphs import UNET_HALVES
from ldmrt.runtime.bundle.manifest import MANIFEST, REFERENCE, SCHEMA
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.lock import bundle_lock
from ldmrt.runtime.files.reading import sha256
from ldmrt.runtime.files.recognise import BUNDLE, refuse_other
from ldmrt.runtime.files.swap import recover, replace_folder
from ldmrt.runtime.files.writing import naming, remove_abandoned, temporary_folder
from ldmrt.runtime.nearest import suggestion

from .components.table import Component, _ends, components, fingerprint
from .engines.image_memory import predict_image_memory
from .graph.to_onnx import GRAPH, OPSET, to_onnx
from .graph.unet_halves import check_cut, cut
from .precision.islands import Islands


@dataclass(frozen=True)
class Exported:
    """Says what became of one component."""

    component: str
    reused: bool


def export_bundle(
    checkpoint: Checkpoint, path: Path, *, only: Collection[str] = (), merged: Mapping[str, Any] | None = None,
    islands: Islands | None = None, deep_cache: bool = False,
) -> Iterator[Exported]:  # fmt: skip
    """Export every component, or `only` some, to a bundle at `path` and yield after each. `merged` is what the manifest
    says of files whose weights were added to the checkpoint's, `islands` of modules that were raised to float32.
    `deep_cache` also cuts the U-Net in two.

    A component whose weights, config and exporter are those of the bundle already there is taken from it, and files
    that the old manifest does not name stay. The bundle changes only after the last component: until then, and after
    any failure, the old one stands.
    """
    path, parts = path.resolve(), components(checkpoint)
    if odd := [name for name in parts if not is_name(name)]:
        raise LdmrtError("export", f"unsupported name {odd[0]!r:.200}", expected="letters, digits, _, - and .")
    if unknown := [name for name in only if name not in parts]:
        problem = f"no component {unknown[0]!r}{suggestion(unknown[0], parts)}"
        raise LdmrtError("export", problem, expected=", ".join(parts))
    refuse_other("export", path, BUNDLE)
    if deep_cache:
        if only and "unet" not in only:
            raise LdmrtError("export", "a deep cache is made of the U-Net", expected="unet among --components")
        check_cut(parts["unet"])
    with _replacing(path) as (old, work):
        rows: dict[str, Any] = {}
        kept = []  # components that stay as they are
        for name, component in parts.items():
            if only and name not in only:
                if name in old.get("components", {}):
                    rows[name] = old["components"][name]
                    kept.append(name)
                continue
            rows[name] = _row(component, (islands or {}).get(name, {}))
            reused = old.get("made_by") == made_by() and _alike(old["components"].get(name, {}), rows[name])
            divide = deep_cache and name == "unet"
            if not reused:
                with naming(path / name):
                    to_onnx(component, work / name)
                write_json(work / name / "config.json", component.config)
            elif divide:
                shutil.copytree(path / name, work / name)
            else:
                kept.append(name)
            if divide:
                halves = cut(work / name / "model.onnx", component)
                beside = {graph: _ends(*specs) for graph, specs in halves.items()}
                rows[name]["graphs"] = rows[name].get("graphs", {}) | beside
            yield Exported(name, reused)
        for folder, files in checkpoint.tokenizers.items():
            (work / folder).mkdir()
            for name, content in files.items():
                (work / folder / name).write_bytes(content)
        write_json(work / "scheduler" / "scheduler_config.json", checkpoint.scheduler)
        write_json(work / "model_index.json", checkpoint.model_index())
        for name in kept:
            _take(path / name, work / name, rows[name])
        known = {name: row for name, row in old.get("files", {}).items() if name.partition("/")[0] in kept}
        manifest = {**_manifest(checkpoint, rows, work, known), **(merged or {})}
        if "unet" in rows:
            predicted = old.get("memory") if "unet" in kept else None
            manifest["memory"] = predicted or predict_image_memory(work / "unet" / "model.onnx", parts["unet"].inputs)
        _keep_certificate(old, path, manifest, work)
        write_json(work / MANIFEST, manifest)
        _carry_over(path, work, {MANIFEST, *old.get("files", {})})


def made_by() -> dict[str, str]:
    """Versions that decide what an export looks like."""
    return {name: importlib.metadata.version(name) for name in ("ldmrt", "torch", "onnx", "onnxscript", "transformers")}


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """The manifest of the bundle that is there, and a folder that takes the bundle's place when the block ends well.
    Nobody else changes the bundle meanwhile; who did without asking is noticed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with bundle_lock(path):
        recover(path)
        before, old = _stamp(path), _old_manifest(path)
        with temporary_folder(path) as work:
            yield old, work
            if _stamp(path) != before:
                problem = f"{path} was changed by something else during the export"
                raise LdmrtError("export", problem, hint="run the same command again")
            work.chmod(0o755)
            replace_folder(work, path)


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


def _stamp(path: Path) -> bytes:
    """The manifest as it stands there: every change of a bundle changes it."""
    manifest = path / MANIFEST
    return manifest.read_bytes() if manifest.is_file() else b""


def _row(component: Component, islands: Mapping[str, str]) -> dict[str, Any]:
    beside = {name: _ends(*specs) for name, specs in component.graphs.items()}
    return {
        **({"islands": dict(islands)} if islands else {}),
        "precision": component.precision,
        "opset": OPSET,
        "graph": GRAPH,
        **fingerprint(component),
        **_ends(component.inputs, component.outputs),
        **({"graphs": beside} if beside else {}),
    }


def _alike(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two rows are of the same graph; those beside it follow from it, and from what is asked for."""
    return {**old, "graphs": None} == {**new, "graphs": None}


def _manifest(
    checkpoint: Checkpoint, rows: dict[str, Any], folder: Path, known: Mapping[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """Describe the bundle in a folder, and its files: `known` ones as the old manifest has them."""
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    if odd := [name for name in files if not is_inside(name)]:
        raise LdmrtError(
            "export", f"unsupported file name {odd[0]!r:.200}", expected="no control characters, no \\ or :"
        )
    return {
        "schema": SCHEMA,
        "made_by": made_by(),
        "prediction_type": checkpoint.scheduler.get("prediction_type", "epsilon"),
        "scaling_factor": checkpoint.vae.config.scaling_factor,
        "components": rows,
        "files": {
            name: known.get(name) or {"size": file.stat().st_size, "sha256": sha256(file)}
            for name, file in files.items()
        },
    }


def _keep_certificate(old: dict[str, Any], path: Path, manifest: dict[str, Any], work: Path) -> None:
    """Keep the certificate where no file has changed."""
    kept = old.get("certificate")
    if kept is None:
        return
    reference = {kept["reference"]: old["files"].get(kept["reference"])}
    if {**manifest["files"], **reference} == old["files"]:
        _link(path / kept["reference"], work / kept["reference"])
        manifest |= {"certificate": kept, "files": old["files"]}


def _carry_over(old: Path, new: Path, made: set[str]) -> None:
    """Keep what a user, or a build of engines, has put into the old bundle; ONNX Runtime's own forms are made anew."""
    remove_abandoned(old)
    for file in old.rglob("*") if old.is_dir() else ():
        name = file.relative_to(old)
        wanted = name.as_posix() not in made and name.parts[0] != OPTIMIZED and not (new / name).exists()
        unnamed = REFERENCE.fullmatch(name.as_posix())  # of a certificate that is no more
        if (file.is_file() or file.is_symlink()) and wanted and not unnamed:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            if file.is_symlink():
                (new / name).symlink_to(os.readlink(file))
            else:
                _link(file, new / name)


def _take(old: Path, new: Path, row: Mapping[str, Any]) -> None:
    """A component's folder, but for the halves of a U-Net that its row knows nothing of."""
    halves = [f"{graph}.onnx" for graph in UNET_HALVES if graph not in row.get("graphs", {})]
    shutil.copytree(old, new, copy_function=_link, ignore=shutil.ignore_patterns(*halves))


def _link(old: str | Path, new: str | Path) -> None:
    """The old bundle's file under a new name: weights and engines are large, and the old name goes."""
    try:
        os.link(os.path.realpath(old), new)
    except OSError:  # a file system without links
        shutil.copy2(old, new)
