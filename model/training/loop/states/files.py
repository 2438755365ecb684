"""Write the state of a run as a folder of JSON and safetensors, which is whole or not there, and read it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ldmrt.model.weights.weights import write
from ldmrt.runtime.errors import first_line
from ldmrt.runtime.files.reading import sha256
from ldmrt.runtime.files.swap import replace_folder
from ldmrt.runtime.files.writing import temporary_folder

VALUES, TENSORS = "state.json", "tensors.safetensors"
SUMS = "SHA256SUMS"  # of both, as `sha256sum --check` reads it
NAMED = "tensor"  # the key of the name that stands for a tensor
State = dict[str, Any]  # of plain values, tensors and such dicts; their keys are read as strings


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state as the folder `path`, which is there at once and whole; one that was there is replaced.

    Args:
        path: The folder.
        state: Plain values, tensors, and dicts of them. The tensor `state["module"]["weight"]` is written as
            module/weight, and its name stands in the JSON of the plain values, which has lists but no tuples.

    Raises:
        OSError: There is no space, or the folder cannot be written; nothing is left of it.
    """
    tensors = dict[str, Tensor]()
    values = _split(state, "", tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path) as work:
        write("train", work / TENSORS, tensors)
        (work / VALUES).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        sums = [f"{sha256(work / name)}  {name}\n" for name in (VALUES, TENSORS)]
        (work / SUMS).write_text("".join(sums), encoding="ascii")
        os.chmod(work, 0o755)
        replace_folder(work, path)


def _split(values: Mapping[Any, Any], prefix: str, tensors: dict[str, Tensor]) -> State:
    """Return the plain values of a dict, and the names of its tensors, which are put into `tensors`."""
    plain = State()
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Tensor):
            assert name not in tensors, name
            tensors[name] = value
            plain[str(key)] = {NAMED: name}
        else:
            plain[str(key)] = _split(value, f"{name}/", tensors) if isinstance(value, Mapping) else value
    return plain


def _joined(values: State, tensors: Mapping[str, Tensor]) -> State:
    """Return a state from what `_split` gave."""
    found = State()
    for key, value in values.items():
        if isinstance(value, dict):
            name = value.get(NAMED)
            found[key] = tensors[name] if isinstance(name, str) else _joined(value, tensors)
        else:
            found[key] = value
    return found


def read_state(path: Path) -> State:
    """Read a state, or one of an older version, which is a file of `torch.save`.

    The tensors are views of the file, which stays on the disk while one of them is there.
    """
    if path.is_file():
        old: State = torch.load(path, map_location="cpu", weights_only=True)
        return old
    values: State = json.loads((path / VALUES).read_text(encoding="utf-8"))
    return _joined(values, load_file(path / TENSORS))


def damage(path: Path) -> str | None:
    """Return what is wrong with the files of a state; None where it is whole, or of an older version."""
    if path.is_file():
        return None
    try:
        for line in (path / SUMS).read_text(encoding="ascii").splitlines():
            digest, name = line.split("  ")
            if sha256(path / name) != digest:
                return f"{name} has another SHA-256"
    except (OSError, ValueError) as error:
        return first_line(error)
    return None
