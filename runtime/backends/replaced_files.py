"""Notices a network's file that is replaced between the opening of a bundle, which checks it, and its use."""

from pathlib import Path

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.file_cache import stamp
from ldmrt.runtime.files.reading import sha256


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


def _state(file: Path) -> list[int] | None:
    """Return the stamp of a file; None where there is none."""
    try:
        return stamp(file.stat())
    except OSError:
        return None
