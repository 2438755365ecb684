"""Read the weights of an ONNX file and the modules that they belong to, without the onnx package.

This reads protobuf's wire format, as `bundle.external_data` does: the nodes of the graph with the names of their
inputs, and its initialisers with where their numbers lie.
"""

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ldmrt.runtime.bundle.external_data import BYTES, FIXED, VARINT, varint
from ldmrt.runtime.errors import BundleError
from ldmrt.runtime.files.reading import plain_file
from ldmrt.runtime.tensors import Array, Shape

# Fields of onnx.proto3
GRAPH, NODE, INITIALIZER, INPUT = 7, 1, 5, 11
NODE_INPUT, NODE_NAME, OP_TYPE = 1, 3, 4
DIMS, DATA_TYPE, NAME, RAW_DATA, EXTERNAL = 1, 2, 8, 9, 13
FLOATS: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 10: np.dtype("<f2")}  # TensorProto.DataType


@dataclass(frozen=True)
class Node:
    """Describes a node: its name, which is `<module>/<operator>`, its operator and the names of its inputs."""

    name: str
    kind: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Initialiser:
    """Describes a constant of floating-point numbers: its ONNX data type, its shape, and where its numbers lie."""

    name: str
    kind: int
    shape: Shape
    path: Path
    offset: int

    def read(self) -> Array:
        """Return its numbers, mapped from their file."""
        array: Array = np.memmap(self.path, FLOATS[self.kind], "r", self.offset, self.shape)
        return array


@dataclass(frozen=True)
class GraphWeights:
    """Holds the nodes of a graph and its floating-point constants by name."""

    path: Path
    nodes: tuple[Node, ...] = field(repr=False)
    initialisers: dict[str, Initialiser] = field(repr=False)

    @classmethod
    def read(cls, component: str, path: Path) -> "GraphWeights":
        """Read an ONNX file.

        Raises:
            BundleError: It is no ONNX file, or a damaged one.
        """
        nodes, initialisers = list[Node](), dict[str, Initialiser]()
        try:
            with plain_file(component, path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=1) as data:
                for number, begin, end in _messages(data, 0, len(data)):
                    for part, first, last in _messages(data, begin, end) if number == GRAPH else ():
                        if part == NODE:
                            nodes.append(_node(data, first, last))
                        elif part == INITIALIZER and (read := _initialiser(data, first, last, path)) is not None:
                            initialisers[read.name] = read
        except (ValueError, IndexError) as error:
            problem, hint = f"cannot load {path}", "export the bundle again"
            raise BundleError(component, problem, found=str(error)[:200], hint=hint) from None
        return cls(path, tuple(nodes), initialisers)

    def as_inputs(self, names: Iterable[str]) -> bytes:
        """Return what makes inputs of constants where it is appended to the file: a model that has these inputs alone.

        Protobuf merges messages that follow one another. An input that is also a constant has that by default.
        """
        graph = b"".join(_field(INPUT, _value_info(self.initialisers[name])) for name in sorted(names))
        return _field(GRAPH, graph)


def _messages(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the fields of a message that hold bytes: number, begin, end."""
    return ((number, begin, last) for number, kind, begin, last in _all_fields(data, at, end) if kind == BYTES)


def _all_fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the fields of a message: number, wire type, begin, end; of a number both are the number itself."""
    while at < end:
        tag, at = varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = varint(data, at)
            yield number, kind, value, value
        elif kind == BYTES:
            size, begin = varint(data, at)
            at = begin + size
            if at > end:
                raise ValueError("a field is longer than its message")
            yield number, kind, begin, at
        elif kind in FIXED:
            at += FIXED[kind]
        else:
            raise ValueError(f"wire type {kind}")


def _node(data: mmap.mmap, begin: int, end: int) -> Node:
    """Read a NodeProto."""
    name, kind, inputs = "", "", list[str]()
    for number, first, last in _messages(data, begin, end):
        if number == NODE_INPUT:
            inputs.append(data[first:last].decode())
        elif number == NODE_NAME:
            name = data[first:last].decode()
        elif number == OP_TYPE:
            kind = data[first:last].decode()
    return Node(name, kind, tuple(inputs))


def _initialiser(data: mmap.mmap, begin: int, end: int, path: Path) -> Initialiser | None:
    """Read a TensorProto; None of one that holds no floating-point numbers as bytes."""
    name, kind, shape, offset, beside = "", 0, list[int](), -1, dict[str, str]()
    for number, wire, first, last in _all_fields(data, begin, end):
        if number == DIMS and wire == BYTES:  # packed
            while first < last:
                size, first = varint(data, first)
                shape.append(size)
        elif number == DIMS:
            shape.append(first)
        elif number == DATA_TYPE and wire == VARINT:
            kind = first
        elif number == NAME and wire == BYTES:
            name = data[first:last].decode()
        elif number == RAW_DATA and wire == BYTES:
            offset = first
        elif number == EXTERNAL and wire == BYTES:
            texts = {part: data[a:b].decode() for part, a, b in _messages(data, first, last)}
            beside[texts.get(1, "")] = texts.get(2, "")
    if kind not in FLOATS:
        return None
    if "location" in beside:
        return Initialiser(name, kind, tuple(shape), path.parent / beside["location"], int(beside.get("offset", "0")))
    return Initialiser(name, kind, tuple(shape), path, offset) if offset >= 0 else None


def _value_info(constant: Initialiser) -> bytes:
    """Write a ValueInfoProto: a tensor's name, type and shape."""
    dims = b"".join(_field(1, _number(1, size)) for size in constant.shape)
    tensor = _number(1, constant.kind) + _field(2, dims)
    return _field(1, constant.name.encode()) + _field(2, _field(1, tensor))


def _field(number: int, content: bytes) -> bytes:
    """Write a field that holds bytes."""
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    """Write a field that holds a number."""
    return _varint(number << 3 | VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    """Write a number, seven bits a byte."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])
