"""What ONNX Runtime makes of a graph for this CPU when it opens one, kept beside the bundle: opening that takes a
fraction of the time, and as much disk again as the weights.
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
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.files.file_cache import HashCache
from ldmrt.runtime.files.reading import plain_file, read_json, sha256
from ldmrt.runtime.files.writing import remove_abandoned, temporary_name, write_atomically
from ldmrt.runtime.host import features

FOLDER, MODEL, DATA, LIST = "optimized", "model.onnx", "model.onnx_data", "kept.json"


def place(bundle: Bundle, graph: str, backend: str, version: str) -> Path:
    """The folder for a graph: another for every other content, and for every backend, ONNX Runtime and kind of CPU."""
    if not bundle.manifest:
        problem, hint = f"{bundle.path} has no manifest that says what its files are", "ldmrt export CHECKPOINT BUNDLE"
        raise LdmrtError("keep_optimized", problem, hint=hint)
    content, kind = _digest(*model_digests(bundle, graph)), _digest(backend, version, features())
    return bundle.path / FOLDER / f"{graph}-{content}-{kind}"


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]


def kept(folder: Path) -> Path | None:
    """The ONNX file that is kept there, where all of it is as it was written."""
    try:
        digests = read_json("keep_optimized", folder / LIST)
        if not {MODEL} <= digests.keys() <= {MODEL, DATA}:
            return None
        stamps = HashCache(folder)
        for name, digest in digests.items():
            check_inside(folder.parent.parent, folder / name)
            if stamps.sha256(name, plain_file("keep_optimized", folder / name)) != digest:
                return None
        if not locations("keep_optimized", folder / MODEL) <= {DATA} & digests.keys():
            return None
    except (OSError, LdmrtError):
        return None
    stamps.keep()
    return folder / MODEL


@contextlib.contextmanager
def keeping(folder: Path) -> Iterator[Path | None]:
    """A path for ONNX Runtime to write to; what it wrote, with DATA beside it, is kept when the block ends well, and
    what was kept of another content of the graph goes. None, with a warning, where nothing can be written.
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
