"""Networks as a backend optimised or compiled them for this machine, kept beside the bundle.

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

FOLDER, LIST = "optimized", "kept.json"


def place(bundle: Bundle, graph: str, *kind: str) -> Path:
    """Return the folder of a kept network: one for each content, kind of CPU, and what `kind` says beside it.

    Args:
        bundle: The opened bundle.
        graph: The name of the graph.
        kind: What else a kept network depends on: the backend, its library's version, its options.

    Raises:
        BundleError: The bundle has no manifest, so the content of its files is unknown.
    """
    if not bundle.manifest:
        problem, hint = f"{bundle.path} has no manifest that lists its files", "ldmrt export CHECKPOINT BUNDLE"
        raise BundleError("keep_optimized", problem, hint=hint)
    content, machine = _digest(*model_digests(bundle, graph)), _digest(*kind, features())
    return bundle.path / FOLDER / f"{graph}-{content}-{machine}"


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]


def kept(folder: Path, model: str, data: str | None = None) -> Path | None:
    """Return a network that is kept in a folder, if all files are still as they were written.

    Args:
        folder: The folder that `place` names.
        model: The file that the backend opens.
        data: The file beside it that an ONNX file may have its weights in.
    """
    try:
        digests = read_json("keep_optimized", folder / LIST)
        if not {model} <= digests.keys() <= {model, data}:
            return None
        hashes = HashCache(folder)
        for name, digest in digests.items():
            check_inside(folder.parent.parent, folder / name)
            if hashes.sha256(name, plain_file("keep_optimized", folder / name)) != digest:
                return None
        if data and not locations("keep_optimized", folder / model) <= {data} & digests.keys():
            return None
    except (OSError, LdmrtError):
        return None
    hashes.keep()
    return folder / model


@contextlib.contextmanager
def keeping(folder: Path) -> Iterator[Path | None]:
    """Yield a folder that a network is written to.

    When the block ends well it becomes `folder`, and the networks of earlier contents are removed.
    It is None, after a warning, where nothing can be written.
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
        yield work
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
