"""An ONNX file whose nodes are named after modules: the value that each module outputs, and the one that it takes."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ldmrt.runtime.bundle.graphs import inside, path_of
from ldmrt.runtime.errors import LdmrtError, first_line

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


@dataclass(frozen=True)
class Graph:
    """Describes the graph of an ONNX file, without its weights."""

    proto: "ModelProto"
    maker: dict[str, "NodeProto"]  # by value: the node that computes it
    gives: dict[str, str]  # by module: the value that it outputs, where that is one floating-point tensor
    takes: dict[str, str]  # by module: the value that it takes from other modules, where that is exactly one

    @classmethod
    def read(cls, component: str, path: Path) -> "Graph":
        """Read an ONNX file that `name_after_modules` has named.

        Raises:
            LdmrtError: The file cannot be read.
        """
        import onnx

        try:
            proto = onnx.load(path, load_external_data=False)
        except Exception as error:
            raise LdmrtError(component, f"cannot read {path}", found=first_line(error)) from None
        graph, kinds = proto.graph, {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
        maker = {value: node for node in graph.node for value in node.output}
        home = {value: path_of(node.name) for value, node in maker.items()}
        home |= dict.fromkeys((info.name for info in graph.input), "")
        types = {info.name: info.type.tensor_type.elem_type for info in (*graph.value_info, *graph.output)}
        floats = {name for name, kind in types.items() if kind in kinds}
        gives: dict[str, str] = {}
        takes: dict[str, set[str]] = {}
        for node in graph.node:
            here = path_of(node.name)
            if node.output[0] in floats:  # of several outputs, none is the module's
                gives |= dict.fromkeys(_modules_around(here), node.output[0] if len(node.output) == 1 else "")
            for value in node.input:
                if value in home and (value in floats or value not in maker):
                    for module in _modules_around(here):
                        if not inside(home[value], module):
                            takes.setdefault(module, set()).add(value)
        single = {module: next(iter(values)) for module, values in takes.items() if len(values) == 1}
        return cls(
            proto,
            maker,
            {module: value for module, value in gives.items() if value},
            {module: value for module, value in single.items() if value in maker},
        )

    def sources(self, value: str, known: Collection[str]) -> set[str]:
        """Return the nearest of the known values that a value was computed from."""
        nearest, todo, done = set[str](), list(self.maker[value].input), set[str]()
        while todo:
            name = todo.pop()
            if name in known:
                nearest.add(name)
            elif name in self.maker and name not in done:
                done.add(name)
                todo += self.maker[name].input
        return nearest


def _modules_around(path: str) -> list[str]:
    """Return a module and all that it lies within, the outermost first: "a.b" gives "a" and "a.b"."""
    parts = path.split(".") if path else []
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
