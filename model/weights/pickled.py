"""Read files of torch.save with `weights_only`, and trust nothing that they declare."""

import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from ldmrt.runtime.errors import LdmrtError

from .lazy import Lazy

WRAPPERS = ("state_dict", "module", "model")  # what training programs put a model's weights under
DEEPEST = 8  # wrappers in one another
PICKLES = 5  # of a file before torch 1.6: magic number, protocol, system, object, keys of the storages
REFUSED = "bytearray"  # fills any number of bytes with zeros
Opcode = tuple[pickletools.OpcodeInfo, object, int | None]  # with its argument and position


def load_pickle(component: str, path: Path) -> object:
    """Load the object in a file of torch.save; only tensors and plain Python values are unpickled.

    Errors are torch's own, but for an `LdmrtError` where the file would grow in memory.
    """
    _check_code(component, path)
    if path.suffix == ".safetensors":  # whose name torch believes
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except RuntimeError:  # a file of torch before 1.6 cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)


def unwrapped(component: str, state: object, path: Path) -> tuple[object, dict[str, int | float | str]]:
    """Return the object that should be a dict of tensors, and what stands beside it: numbers and names of training."""
    beside: dict[str, int | float | str] = {}
    for _ in range(DEEPEST):
        if not isinstance(state, dict):
            return state, beside
        name = next((name for name in WRAPPERS if isinstance(state.get(name), dict)), None)
        if name is None:
            return state, beside
        beside |= {str(key): value for key, value in state.items() if isinstance(value, (int, float, str))}
        state = state[name]
    raise LdmrtError(component, f"cannot read {path}", expected="a dict of tensors", found=f"a {name} without an end")


def lazy_tensor(component: str, key: str, value: Tensor, path: Path) -> Lazy:
    """Describe a tensor of a pickle; refuse one that is larger than the file, or not dense."""
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        raise LdmrtError(
            component, f"unsupported tensor {key} in {path}", expected="a dense tensor", found=value.layout
        )
    if value.numel() * value.element_size() > max(value.untyped_storage().nbytes(), 0) or (
        value.untyped_storage().nbytes() > path.stat().st_size
    ):
        problem, expected = f"{key} in {path} declares more than the file holds", f"{path.stat().st_size} bytes"
        raise LdmrtError(component, problem, expected=f"at most {expected}", found=f"shape {tuple(value.shape)}")
    return Lazy(tuple(value.shape), value.dtype if value.is_floating_point() else None, lambda: value)


def _check_code(component: str, path: Path) -> None:
    """Refuse a pickle that is packed, or asks for a buffer of zeros: both grow to any size when they are read."""
    with path.open("rb") as file:
        for pickled in _pickles(component, file, path):
            if any(REFUSED in str(argument) for code, argument, _ in pickled if "GLOBAL" in code.name):
                raise LdmrtError(component, f"cannot read {path}", expected="tensors alone", found=REFUSED)


def _pickles(component: str, file: IO[bytes], path: Path) -> Iterator[Iterator[Opcode]]:
    """Yield the opcodes of each pickle in a file, as far as it can be read; torch says what is wrong with the rest."""
    if not zipfile.is_zipfile(file):
        file.seek(0)
        for _ in range(PICKLES):
            yield _opcodes(file)
        return
    with zipfile.ZipFile(file) as archive:
        if packed := [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]:
            raise LdmrtError(
                component, f"cannot read {path}", expected="an archive without compression", found=packed[0]
            )
        for entry in archive.infolist():
            if re.fullmatch(r"([^/]*/)?data\.pkl", entry.filename):
                with archive.open(entry) as pickled:
                    yield _opcodes(pickled)


def _opcodes(file: IO[bytes]) -> Iterator[Opcode]:
    """Yield the opcodes of the pickle that begins here, up to its end or its first invalid one."""
    try:
        yield from pickletools.genops(file)
    except ValueError:  # cut off, or no pickle
        return
