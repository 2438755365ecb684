"""Writes a bundle as a whole: into a folder beside its place, which is then moved there."""

import contextlib
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import ldmrt
from ldmrt.model.checkpoint.checkpoint import Checkpoint, write_json
from ldmrt.runtime.backends.kept_networks import FOLDER as OPTIMIZED
from ldmrt.runtime.backends.openvino.ranges import stored_in
from ldmrt.runtime.bundle.bundle import Bundle, read_manifest
from ldmrt.runtime.bundle.contents import is_inside, is_name
from ldmrt.runtime.bundle.graphs import UNET_HALVES
from ldmrt.runtime.bundle.manifest import MANIFEST, REFERENCE, SCHEMA, UPSCALE_MODEL
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.lock import bundle_lock
from ldmrt.runtime.files.reading import JsonObject, sha256
from ldmrt.runtime.files.recognise import BUNDLE, refuse_other
from ldmrt.runtime.files.swap import recover, replace_folder
from ldmrt.runtime.files.writing import link_or_copy, naming, remove_abandoned, temporary_folder
from ldmrt.runtime.nearest import check_known
from ldmrt.runtime.samplers.config import prediction_type

from .components.component import Component
from .components.fingerprint import ends_of, fingerprint
from .components.table import components
from .engines.image_memory import predict_image_memory
from .graph.cuda.write import write_cuda_graphs
from .graph.to_onnx import GRAPH, OPSET, to_onnx
from .graph.unet_halves import check_cut, cut
from .precision.islands import Islands


@dataclass(frozen=True)
class Exported:
    """Names a component and how its files came about."""

    component: str
    reused: bool


def export_bundle(
    checkpoint: Checkpoint,
    path: Path,
    *,
    only: Collection[str] = (),
    merged: Mapping[str, object] | None = None,
    islands: Islands | None = None,
    deep_cache: bool = False,
) -> Iterator[Exported]:
    """Export a checkpoint to a bundle, and yield after each component.

    A component whose weights, config and exporter are those of the bundle already there is reused, and files that the
    old manifest does not name stay. The bundle changes only after the last component: until then, and after any
    failure, the old one stands.

    Args:
        checkpoint: The networks, already in the precisions in which they are exported.
        path: The bundle's folder: a new or empty one, or an older bundle.
        only: The components that are exported; all where it is empty.
        merged: The manifest's entries about weights that were merged into the checkpoint's.
        islands: The modules that compute in float32, by component, with the reason of each.
        deep_cache: Whether the U-Net is also cut in two for the deep cache.

    Yields:
        Each component that was exported or reused, in the order in which they run.

    Raises:
        LdmrtError: A component is unknown, the folder holds something else, the graph is not valid, or something else
            changed the bundle meanwhile.
    """
    path, parts = path.resolve(), components(checkpoint)
    if odd := [name for name in parts if not is_name(name)]:
        raise LdmrtError("export", f"unsupported name {odd[0]!r:.200}", expected="letters, digits, _, - and .")
    check_known("export", only, parts)
    refuse_other("export", path, BUNDLE)
    if deep_cache:
        if "unet" not in parts:
            raise LdmrtError("export", "this model has no U-Net to cut in two", expected="no --deep-cache")
        if only and "unet" not in only:
            raise LdmrtError("export", "a deep cache is made of the U-Net", expected="unet among --components")
        check_cut(parts["unet"])
    with replacing(path) as (old, work):
        rows: JsonObject = {}
        kept = []  # components that stay as they are
        for name, component in parts.items():
            if only and name not in only:
                if name in old.get("components", {}):
                    rows[name] = old["components"][name]
                    kept.append(name)
                continue
            rows[name] = row_of(component, (islands or {}).get(name, {}))
            reused = old.get("made_by") == made_by() and _alike(old["components"].get(name, {}), rows[name])
            divide = deep_cache and name == "unet"
            if not reused:
                with naming(path / name):
                    to_onnx(component, work / name)
                write_json(work / name / "config.json", component.config)
            elif divide:
                _take(path, work, name, _listed(old, rows[name]), shutil.copy2)
            else:
                kept.append(name)
            if divide:
                halves = cut(work / name / "model.onnx", component)
                write_cuda_graphs(name, work / name)
                beside = {graph: ends_of(*specs) for graph, specs in halves.items()}
                rows[name]["graphs"] = rows[name].get("graphs", {}) | beside
            yield Exported(name, reused)
        for folder, files in checkpoint.tokenizers.items():
            (work / folder).mkdir()
            for name, content in files.items():
                (work / folder / name).write_bytes(content)
        for name, scheduler in checkpoint.schedulers.items():
            write_json(work / name / "scheduler_config.json", scheduler)
        write_json(work / "model_index.json", checkpoint.model_index())
        for name in kept:
            _take(path, work, name, _listed(old, rows[name]), link_or_copy)
        known = {name: row for name, row in old.get("files", {}).items() if name.partition("/")[0] in kept}
        manifest = {**_manifest(checkpoint, rows, work, known), **(merged or {})}
        if (denoiser := checkpoint.stage.network) in rows:
            predicted, graph = old.get("memory") if denoiser in kept else None, work / denoiser / "model.onnx"
            manifest["memory"] = predicted or predict_image_memory(
                graph, parts[denoiser].inputs, checkpoint.stage.largest
            )
        manifest |= {name: old[name] for name in ("then", "schema") if "then" in old}  # the later stages stay
        _keep_certificate(old, path, manifest, work)
        write_json(work / MANIFEST, manifest)
        carry_over(path, work, {MANIFEST, *old.get("files", {})})


def made_by() -> dict[str, str]:
    """Versions that decide what an export looks like."""
    names = ("torch", "onnx", "onnxscript", "transformers")
    return {"ldmrt": ldmrt.__version__, **{name: importlib.metadata.version(name) for name in names}}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[tuple[JsonObject, Path]]:
    """Yield the manifest of the bundle at `path`, and a folder that replaces the bundle when the block ends well.

    The bundle is locked meanwhile, and a change by a program that ignores the lock is an `LdmrtError`.
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


def _old_manifest(path: Path) -> JsonObject:
    """Return the manifest of an intact bundle, empty where there is none; a folder of anything else is refused."""
    if not path.exists():
        return {}
    if not path.is_dir() or (any(path.iterdir()) and not (path / MANIFEST).is_file()):
        raise LdmrtError("export", f"{path} is there and is no bundle", expected="a new folder or an old bundle")
    try:
        manifest = read_manifest(path)
        if UPSCALE_MODEL not in manifest:
            Bundle.open(path, check=False)
        return {"components": {}, **manifest}
    except LdmrtError:
        return {}  # damaged: exported again


def _stamp(path: Path) -> bytes:
    """Return the manifest's bytes, which every change of a bundle changes."""
    manifest = path / MANIFEST
    return manifest.read_bytes() if manifest.is_file() else b""


def row_of(component: Component, islands: Mapping[str, str]) -> JsonObject:
    """Describe a component as the manifest does."""
    beside = {name: ends_of(*specs) for name, specs in component.graphs.items()}
    return {
        **({"islands": dict(islands)} if islands else {}),
        "precision": component.precision,
        "opset": OPSET,
        "graph": GRAPH,
        **fingerprint(component),
        **ends_of(component.inputs, component.outputs),
        **({"graphs": beside} if beside else {}),
    }


def _alike(old: JsonObject, new: JsonObject) -> bool:
    """Return whether two rows describe the same graph; the graphs beside it follow from it."""
    return {**old, "graphs": None} == {**new, "graphs": None}


def _manifest(
    checkpoint: Checkpoint, rows: JsonObject, folder: Path, known: JsonObject
) -> JsonObject:  # fmt: skip
    """Describe the bundle in a folder, and its files, see `files_in`."""
    return {
        "schema": SCHEMA,
        "made_by": made_by(),
        "prediction_type": prediction_type(checkpoint.scheduler),
        "scaling_factor": checkpoint.stage.space.scaling_factor,
        "stages": [checkpoint.stage.to_json()],
        "components": rows,
        "files": files_in(folder, known),
    }


def files_in(folder: Path, known: JsonObject) -> JsonObject:
    """Describe the files in a folder as the manifest does: `known` ones as the old manifest has them."""
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    if odd := [name for name in files if not is_inside(name)]:
        raise LdmrtError(
            "export", f"unsupported file name {odd[0]!r:.200}", expected="no control characters, no \\ or :"
        )
    return {
        name: known.get(name) or {"size": file.stat().st_size, "sha256": sha256(file)} for name, file in files.items()
    }


def _keep_certificate(old: JsonObject, path: Path, manifest: JsonObject, work: Path) -> None:
    """Keep the certificate where no file has changed."""
    kept = old.get("certificate")
    if kept is None:
        return
    beside = {name: old["files"].get(name) for name in (kept["reference"], stored_in(old)) if name is not None}
    if {**manifest["files"], **beside} == old["files"]:
        for name in beside:
            link_or_copy(path / name, work / name)
        manifest |= {"certificate": kept, "files": old["files"]}


def carry_over(old: Path, new: Path, made: set[str]) -> None:
    """Keep the files that a user or a build of engines put into the old bundle, without ONNX Runtime's own forms."""
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
                link_or_copy(file, new / name)


def _listed(old: JsonObject, row: JsonObject) -> set[str]:
    """Name the files of the old manifest, without the halves of a U-Net that the component's row does not list."""
    halves = tuple(f"unet/{graph}." for graph in UNET_HALVES if graph not in row.get("graphs", {}))
    return {name for name in old["files"] if not name.startswith(halves)}


def _take(old: Path, new: Path, component: str, files: set[str], copy: Callable[[str, str], object]) -> None:
    """Copy those of a component's files that are named into the new bundle: a file that was added is not listed."""

    def others(folder: str, names: list[str]) -> set[str]:
        paths = {name: Path(folder) / name for name in names}
        return {n for n, path in paths.items() if path.is_file() and path.relative_to(old).as_posix() not in files}

    shutil.copytree(old / component, new / component, copy_function=copy, ignore=others)
