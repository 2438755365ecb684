"""Graphs as ONNX Runtime optimised them for this CPU, kept beside the bundle.

A network then opens in a fraction of the time, for as much disk again as its weights.
"""

import contextlib
import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.contents import check_inside
from ldmrt.runtime.bundle.engines.store import model_digests
from ldmrt.runtime.bundle.external_data import locations
from ldmrt.runtime.errors import BundleError, LdmrtError, LdmrtWarning
from ldmrt.runtime.files.file_cache import HashCache
from ldmrt.runtime.files.reading import plain_file, read_json, sha256
from ldmrt.runtime.files.writing import remove_abandoned, temporary_name, write_atomically
from ldmrt.runtime.host import features

FOLDER, MODEL, DATA, LIST = "optimized", "model.onnx", "model.onnx_data", "kept.json"


def place(bundle: Bundle, graph: str, backend: str, version: str) -> Path:
    """Return the folder of an optimised graph: one for each content, backend, ONNX Runtime and kind of CPU.

    Raises:
        BundleError: The bundle has no manifest, so the content of its files is unknown.
    """
    if not bundle.manifest:
        problem, hint = f"{bundle.path} has no manifest that lists its files", "ldmrt export CHECKPOINT BUNDLE"
        raise BundleError("keep_optimized", problem, hint=hint)
    content, kind = _digest(*model_digests(bundle, graph)), _digest(backend, version, features())
    return bundle.path / FOLDER / f"{graph}-{content}-{kind}"


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]


def kept(folder: Path) -> Path | None:
    """Return the optimised ONNX file in a folder, if all files are still as they were written."""
    try:
        digests = read_json("keep_optimized", folder / LIST)
        if not {MODEL} <= digests.keys() <= {MODEL, DATA}:
            return None
        hashes = HashCache(folder)
        for name, digest in digests.items():
            check_inside(folder.parent.parent, folder / name)
            if hashes.sha256(name, plain_file("keep_optimized", folder / name)) != digest:
                return None
        if not locations("keep_optimized", folder / MODEL) <= {DATA} & digests.keys():
            return None
    except (OSError, LdmrtError):
        return None
    hashes.keep()
    return folder / MODEL


@contextlib.contextmanager
def keeping(folder: Path) -> Iterator[Path | None]:
    """Yield a path that ONNX Runtime writes an optimised graph to, with its weights in DATA beside it.

    When the block ends well the files are moved into `folder`, and optimised graphs of earlier contents are removed.
    The path is None, after a warning, where nothing can be written.
    """
    try:
        folder.parent.mkdir(exist_ok=True)
        remove_abandoned(folder.parent)
        work = folder.parent / temporary_name(folder.name)
        work.mkdir(mode=0o700)
    except OSError as error:
        warnings.warn(f"{folder.parent}: nothing can be kept there: {error}", LdmrtWarning, stacklevel=3)
        yield None
        return
    try:
        yield work / MODEL
        digests = {path.name: sha256(path) for path in sorted(work.iterdir())}
        with write_atomically(work / LIST) as file:
            file.write(json.dumps(digests).encode())
        work.chmod(0o755)
        content = folder.name.rpartition("-")[0]
        graph = content.rpartition("-")[0]
        for other in folder.parent.glob(f"{graph}-*-*"):
            if other == folder or not other.name.startswith(f"{content}-"):
                shutil.rmtree(other, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process was faster
            work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
