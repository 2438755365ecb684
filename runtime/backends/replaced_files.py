"""Notices a network's file that is replaced between the opening of a bundle, which checks it, and its use."""

from pathlib import Path

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import sha256

State = tuple[int, int, int, int]  # size, inode, times of modification and of change


class Watched:
    """The state of a bundle's networks on disk. Make it before the bundle is checked."""

    def __init__(self, path: Path) -> None:
        self._states = {file: _state(file) for file in path.glob("*/*.onnx*")}

    def check(self, bundle: Bundle, graph: str) -> None:
        """Refuse a graph of which a file is no longer the one that was there; the same bytes written anew are."""
        for file in (bundle.model(graph), *bundle.weights(graph)):
            found = _state(file)
            if found is not None and found == self._states.get(file):
                continue
            name = file.relative_to(bundle.path).as_posix()
            expected = bundle.manifest.get("files", {}).get(name, {}).get("sha256")
            if found is None or expected is None or sha256(file) != expected:
                problem, hint = f"{name} was replaced after the bundle was opened", "open the bundle again"
                raise LdmrtError(graph, problem, hint=hint)
            self._states[file] = found


def _state(file: Path) -> State | None:
    """None where there is no such file."""
    try:
        there = file.stat()
    except OSError:
        return None
    return there.st_size, there.st_ino, there.st_mtime_ns, there.st_ctime_ns
