"""Files of weights that cannot be read, or would run code."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldmrt.model.weights.weights import open_weights
from ldmrt.runtime import LdmrtError

from .test_weights import STEM


class Bomb:
    """What a pickle can do: it runs a command when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("suffix", ["bin", "ckpt"])
def test_nothing_is_unpickled(suffix: str, old: bool, tmp_path: Path) -> None:
    path = tmp_path / f"{STEM}.{suffix}"
    torch.save({"a": torch.ones(1), "b": Bomb(tmp_path / "ran")}, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(LdmrtError, match=r"can only be unpickled, .* its code.*GLOBAL .*mkdir.*\n  try: a saf"):
        open_weights("unet", path)
    path.write_bytes(pickle.dumps({"a": Bomb(tmp_path / "ran")}))
    with pytest.raises(LdmrtError):
        open_weights("unet", path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("old", [False, True])
def test_pickled_tensors(old: bool, tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2).half(), "step": torch.tensor(3)}
    torch.save({**state, "note": "of training"}, tmp_path / "x.bin", _use_new_zipfile_serialization=not old)
    tensors = open_weights("unet", tmp_path / "x.bin")
    assert tensors.keys() == state.keys()
    assert tensors.pop("step").dtype is None
    assert all(torch.equal(tensor.read(), state[key]) for key, tensor in tensors.items())


def lfs(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


FILES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "empty": ("x.safetensors", lambda p: p.write_bytes(b""), "cannot read .*x.safetensors; expected a whole"),
    "a web page": ("x.safetensors", lambda p: p.write_text("<!doctype html>" * 9), "cannot read .*x.safetensors"),
    "a pointer": ("x.safetensors", lfs, "cannot read .*; found a pointer of Git LFS\n  try: git lfs pull"),
    "a pointer for a pickle": ("x.bin", lfs, "found a pointer of Git LFS"),
    "an empty pickle": ("x.bin", lambda p: p.write_bytes(b""), "cannot read .*x.bin; expected a whole file"),
    "noise": ("x.ckpt", lambda p: p.write_bytes(bytes(range(256))), "x.ckpt"),
    "a list": ("x.bin", lambda p: torch.save([torch.ones(1)], p), "expected a dict of tensors; found list"),
    "no tensor": ("x.bin", lambda p: torch.save({"a": 1}, p), "expected a dict of tensors"),
    "an index of nothing": ("x.safetensors.index.json", lambda p: p.write_text('{"weight_map": {}}'), "weight_map"),
    "an index of a list": ("x.safetensors.index.json", lambda p: p.write_text('{"weight_map": [1]}'), "weight_map"),
    "a missing shard": (
        "x.safetensors.index.json",
        lambda p: p.write_text('{"weight_map": {"a": "x-00001-of-00002.safetensors"}}'),
        "missing file; expected .*x-00001-of-00002.safetensors",
    ),
    "a shard elsewhere": (
        "x.safetensors.index.json",
        lambda p: p.write_text('{"weight_map": {"a": "../secret.safetensors"}}'),
        "names a shard that is not beside it; found ../secret.safetensors",
    ),
    "an index of itself": (
        "x.safetensors.index.json",
        lambda p: p.write_text('{"weight_map": {"a": "x.safetensors.index.json"}}'),
        "names a shard that is not beside it; found x.safetensors.index.json",
    ),
    "missing": ("x.safetensors", lambda p: None, "missing file"),
    "a folder": ("x.bin", lambda p: p.mkdir(), "expected a regular file; found a folder"),
    "a FIFO": ("x.safetensors", lambda p: os.mkfifo(p), "expected a regular file; found a FIFO"),
    "a device": ("x.bin", lambda p: p.symlink_to("/dev/zero"), "expected a regular file; found a device"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_what_cannot_be_read(name: str, tmp_path: Path) -> None:
    file, make, message = FILES[name]
    make(tmp_path / file)
    with pytest.raises(LdmrtError, match=message):
        open_weights("unet", tmp_path / file)
