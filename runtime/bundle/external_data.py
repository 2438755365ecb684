"""Finds the files that hold the weights of an ONNX file, without the onnx package.

A graph may name any path as the location of a tensor, at any depth of its subgraphs. So all tensors are visited: this
reads protobuf's wire format, down the fields of onnx.proto3 that lead to a tensor.
"""

import mmap
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from ldmrt.runtime.errors import BundleError
from ldmrt.runtime.files.reading import plain_file

# message -> field number -> the message that the field holds
FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {1: "key", 2: "value"},
}
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIXED = {FIXED64: 8, FIXED32: 4}
LOCATION = b"location"


def locations(component: str, path: Path) -> set[str]:
    """Return the locations of external data in an ONNX file, as they are written there.

    Raises:
        BundleError: The file is no ONNX file, or a damaged one.
    """
    state = plain_file(component, path).stat()
    return set(_read(component, path, (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)))


@lru_cache(256)  # a command may open its bundle several times
def _read(component: str, path: Path, state: tuple[int, ...]) -> frozenset[str]:
    """Read a file that is in this state: on which device, its number there, its size, and when it was written."""
    if state[2] == 0:
        return frozenset()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return frozenset(value.decode() for value in _locations(data))
        except (ValueError, IndexError):
            problem, hint = f"cannot load {path}", "export the bundle again"
            raise BundleError(component, problem, found="no ONNX file, or a damaged one", hint=hint) from None


def _locations(data: mmap.mmap) -> Iterator[bytes]:
    """Yield the location of every tensor; messages are visited from a stack, so that no depth is too deep."""
    waiting = [("model", 0, len(data))]
    while waiting:
        message, begin, end = waiting.pop()
        if message == "node" and data.find(LOCATION, begin, end) < 0:
            continue
        inside = [(FIELDS[message].get(number), a, b) for number, a, b in fields(data, begin, end)]
        if message == "entry":
            texts = {name: data[a:b] for name, a, b in inside if name}  # of duplicates the last counts
            if texts.get("key") == LOCATION:
                yield texts.get("value", b"")
        else:
            waiting += [(name, a, b) for name, a, b in inside if name]


def fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the fields of a message that hold bytes: number, begin, end."""
    while at < end:
        tag, at = varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            _, at = varint(data, at)
        elif kind == BYTES:
            size, begin = varint(data, at)
            at = begin + size
            if at > end:
                raise ValueError("a field is longer than its message")
            yield number, begin, at
        elif kind in FIXED:
            at += FIXED[kind]
        else:  # groups, which ONNX does not use
            raise ValueError(f"wire type {kind}")
    if at != end:
        raise ValueError("a message was cut off")


def varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """Read a number of seven bits a byte; return it and the position after it."""
    value = shift = 0
    while (byte := data[at]) & 0x80:
        value |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if shift > 63:
            raise ValueError("a number is too long")
    return value | byte << shift, at + 1
