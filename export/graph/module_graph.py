"""An ONNX file whose nodes are named after modules: which value each module gives, and which it takes."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmrt.runtime.errors import LdmrtError, first_line

from .naming import inside, path_of


@dataclass(frozen=True)
class Graph:
    """The graph of an ONNX file, without its weights."""

    proto: Any
    maker: dict[str, Any]  # the node of each value
    gives: dict[str, str]  # value by module
    takes: dict[str, str]  # where it is one

    @classmethod
    def read(cls, component: str, path: Path) -> "Graph":
        import onnx

        try:
            proto = onnx.load(path, load_external_data=False)
        except Exception as error:
            raise LdmrtError(component, f"cannot read {path}", found=first_line(error)) from None
        graph, kinds = proto.graph, {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
        maker = {value: node for node in graph.node for value in node.output}
        home = {value: path_of(node.name) for value, node in maker.items()}
        home |= dict.fromkeys((value.name for value in graph.input), "")
        types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
        floats = {name for name, kind in types.items() if kind in kinds}
        gives: dict[str, str] = {}
        takes: dict[str, set[str]] = {}
        for node in graph.node:
            here = path_of(node.name)
            if node.output[0] in floats:  # of several outputs, none is the module's
                gives |= dict.fromkeys(_within(here), node.output[0] if len(node.output) == 1 else "")
            for value in node.input:
                if value in home and (value in floats or value not in maker):
                    for module in _within(here):
                        if not inside(home[value], module):
                            takes.setdefault(module, set()).add(value)
        return cls(
            proto,
            maker,
            {module: value for module, value in gives.items() if value},
            {
                module: value
                for module, values in takes.items()
                if len(values) == 1
                for value in values
                if value in maker
            },
        )

    def sources(self, value: str, known: Collection[str]) -> set[str]:
        """The nearest known values that a value was computed from."""
        found, todo, done = set[str](), list(self.maker[value].input), set[str]()
        while todo:
            name = todo.pop()
            if name in known:
                found.add(name)
            elif name in self.maker and name not in done:
                done.add(name)
                todo += self.maker[name].input
        return found


def _within(path: str) -> list[str]:
    """Return what a path may lie within: "a.b" of "a" and of "a.b"."""
    parts = path.split(".") if path else []
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
