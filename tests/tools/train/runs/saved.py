"""The states that a run has saved."""

from pathlib import Path
from typing import Any

from ldmrt.model.training.loop.states.files import read_state
from ldmrt.model.training.loop.states.kept import STATES, newest_state


def last_state(out: Path) -> dict[str, Any]:
    """The newest state of the run in a folder."""
    return read_state(newest_state(out)[0])


def contents(folder: Path) -> dict[str, bytes]:
    """The files in a folder, by their paths in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def written(out: Path) -> dict[str, bytes]:
    """The states of a run, and the files of its networks."""
    states = {str(STATES / name): content for name, content in contents(out / STATES).items()}
    networks = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.safetensors"))}
    assert networks.keys() - states.keys(), "no network was written"
    return {**states, **networks}
