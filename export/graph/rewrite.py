"""Nodes that take the place of another, in a graph of onnx_ir whose nodes are named."""

from itertools import count
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .naming import path_of


class Rewrite:
    """Writes what takes the place of `node`, named after the module that it comes from."""

    def __init__(self, graph: Any, node: Any) -> None:
        from onnx_ir.tape import Tape

        self._graph, self._node, self._tape, self._home = graph, node, Tape(), path_of(node.name)
        self._taken = {one.name for one in graph}

    def __call__(self, kind: str, *inputs: Any, **attributes: Any) -> Any:
        """A node more: what it gives."""
        made: Any = self._tape.op(kind, inputs, attributes)
        names = (f"{self._home}/{kind}_{number}" for number in count(1))
        made.name = made.producer().name = next(name for name in names if name not in self._taken)
        self._taken.add(made.name)
        return made

    def constant(self, name: str, value: ArrayLike, dtype: DTypeLike = np.int64) -> Any:
        """A constant of the module: `name` begins with what parts it from the module's."""
        import onnx_ir

        held = self._tape.initializer(onnx_ir.tensor(np.asarray(value, dtype), name=f"{self._home}{name}"))
        self._graph.register_initializer(held)
        return held

    def interleave(self, four: list[Any]) -> Any:
        """Join four (batch, K, H, W), the pixels (0, 0), (0, 1), (1, 0), (1, 1) of every two by two, to all pixels."""
        size = self("Mul", self("Shape", four[0]), self.constant("/double", [1, 1, 2, 2]))
        axes = self.constant("/apart", [3, 5])
        apart = [self("Unsqueeze", one, axes) for one in four]  # (batch, K, H, 1, W, 1)
        rows = [self("Concat", *apart[2 * a : 2 * a + 2], axis=5) for a in (0, 1)]
        return self("Reshape", self("Concat", *rows, axis=3), size)

    def finish(self, made: Any) -> None:
        """Put `made` where what the node gives was, under its name, and remove the node."""
        given = self._node.outputs[0]
        self._graph.insert_before(self._node, self._tape.nodes)
        made.name, made.type, made.shape = given.name, given.type, given.shape
        given.replace_all_uses_with(made, replace_graph_outputs=True)
        self._graph.remove(self._node, safe=True)
