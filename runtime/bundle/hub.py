"""Bundles by their name on the Hugging Face hub: the files of a bundle are fetched, and no others."""

import glob
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from ldmrt.runtime.errors import BundleError, LdmrtError
from ldmrt.runtime.files.hub import fetch, is_hub_name
from ldmrt.runtime.files.reading import read_json
from ldmrt.runtime.files.swap import recover

from .contents import bundle_errors
from .graphs import DECODER, DENOISERS, ORDER
from .manifest import MANIFEST, check_manifest

INDEX = "model_index.json"
# The files of a bundle without a manifest, as optimum and diffusers export it.
UNLISTED = (
    "scheduler/scheduler_config.json",
    "tokenizer*/*",
    *(f"{kind}*/{file}" for kind in ORDER for file in ("config.json", "model.onnx*", "weights.pb")),
)
COMMIT = re.compile("[0-9a-f]{40}")  # the name of a snapshot's folder in the hub's cache


def local_bundle(name: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a bundle; a bundle on the hub is fetched into the hub's cache first.

    A path that exists is returned as it is, and so is any text that cannot be a name on the hub: an absolute path, one
    that begins with `.` or `~`, one with more than one slash. (A `Path` keeps no leading "./".) Engines are not
    fetched: each is made for one GPU and one version of its library.

    Args:
        name: A folder, or a name on the hub: "owner/name", or "owner/name@revision".
        revision: A branch, a tag or a commit on the hub, also one with a slash; the main branch if None.

    Returns:
        A folder to be opened with `Bundle.open`. It is not checked, and where `name` is a path need not exist.

    Raises:
        BundleError: huggingface_hub is not installed, the hub has no such model or revision, access to it is
            restricted, the hub cannot be reached, or the model on the hub is not a bundle. Also where a revision is
            asked for twice, or of a folder.
    """
    path = Path(name)
    if not os.path.exists(path):
        recover(path)  # from a command that was killed while it wrote the bundle
    model, at, suffix = str(name).partition("@")
    if os.path.exists(path) or not is_hub_name(model) or "/" in suffix or (at and not suffix):
        if revision is not None:
            raise BundleError("bundle", f"{name} has no revisions", expected="a name on the hub, or no revision")
        return path
    if at and revision is not None:
        problem, expected = f"{name} with the revision {revision}", "only one revision"
        raise BundleError("bundle", problem, expected=expected, hint=f"{model}@{revision}")
    return _fetch_bundle(model, suffix or revision)


def _fetch_bundle(name: str, revision: str | None) -> Path:
    """Fetch the manifest, and then the files that it lists at the same commit."""
    folder = _fetch(name, [MANIFEST, INDEX], revision)
    revision = folder.name if COMMIT.fullmatch(folder.name) else revision
    if (folder / MANIFEST).is_file():
        for stage in _fetch_listed(name, folder, "", revision):
            _fetch(name, [f"{stage}/{MANIFEST}"], revision)
            _fetch_listed(name, folder, f"{stage}/", revision)
        return folder
    if (folder / INDEX).is_file():
        folder = _fetch(name, [INDEX, *UNLISTED], revision)
        there = [part for part in (*DENOISERS, DECODER) if (folder / part / "model.onnx").is_file()]
        if DECODER in there and len(there) > 1:
            return folder
        checkpoint = name
    else:
        checkpoint = "CHECKPOINT"
    problem, expected = f"{name} on the hub is not a bundle", f"{MANIFEST}, or ONNX files as optimum exports them"
    hint = f"ldmrt export {checkpoint} {shlex.quote(f'out/{Path(name).name}')}"
    raise BundleError("bundle", problem, expected=expected, hint=hint)


def _fetch_listed(name: str, folder: Path, place: str, revision: str | None) -> tuple[str, ...]:
    """Fetch the files that the manifest at a place in a model's folder lists, and return the later stages it names."""
    with bundle_errors():
        manifest = read_json("bundle", folder / place / MANIFEST)
    check_manifest(manifest)
    files = [f"{place}{file}" for file in manifest["files"]]
    _fetch(name, [f"{place}{MANIFEST}", f"{place}{INDEX}", *map(glob.escape, files)], revision)
    if lacking := [file for file in files if not (folder / file).is_file()]:
        problem, hint = f"{name} from the hub is incomplete", "run again with a network, or upload the bundle again"
        raise BundleError("bundle", problem, expected=lacking[0], hint=hint)
    return tuple(manifest.get("then", ()))


def _fetch(name: str, files: Sequence[str], revision: str | None) -> Path:
    """Fetch files, with a hint for people who meant a path."""
    try:
        return fetch("bundle", name, files, revision)
    except LdmrtError as error:
        hint = f"{error.hint}; for a bundle of your own: ldmrt export CHECKPOINT {name}"
        raise error.as_kind(BundleError, hint) from None
