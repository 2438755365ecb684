"""Notices a network's file that is replaced between the opening of a bundle, which checks it, and its use."""

from pathlib import Path

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.errors import BundleError
from ldmrt.runtime.files.file_cache import stamp
from ldmrt.runtime.files.reading import sha256


class Watched:
    """The state of a bundle's networks on disk."""

    def __init__(self, path: Path) -> None:
        """Note the state of every ONNX file in a bundle; to be made before the bundle is checked."""
        self._states = {file: _state(file) for file in path.glob("*/*.onnx*")}

    def check(self, bundle: Bundle, graph: str) -> None:
        """Compare the files of a graph with their noted state; the same bytes, written again, are accepted.

        Raises:
            BundleError: A file was replaced after the bundle was opened.
        """
        for file in (*bundle.models(graph), *bundle.weights(graph)):
            state = _state(file)
            if state is not None and state == self._states.get(file):
                continue
            name = file.relative_to(bundle.path).as_posix()
            expected = bundle.manifest.get("files", {}).get(name, {}).get("sha256")
            if state is None or expected is None or sha256(file) != expected:
                problem, hint = f"{name} was replaced after the bundle was opened", "open the bundle again"
                raise BundleError(graph, problem, hint=hint)
            self._states[file] = state


def _state(file: Path) -> list[int] | None:
    """Return the stamp of a file; None where there is none."""
    try:
        return stamp(file.stat())
    except OSError:
        return None
