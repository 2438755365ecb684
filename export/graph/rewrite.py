"""Replaces one node by others, in a graph of onnx_ir whose nodes are named."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ldmrt.runtime.bundle.graphs import path_of
from ldmrt.runtime.tensors import Array

if TYPE_CHECKING:
    from onnx_ir import Graph, Node, TensorProtocol, Value


def constant_of(weight: "Value | None") -> "TensorProtocol":
    """Return a constant's tensor."""
    assert weight is not None
    assert weight.const_value is not None
    return weight.const_value


def numbers_of(weight: "Value | None") -> Array:
    """Return the numbers of a constant."""
    return constant_of(weight).numpy()


Attribute = int | float | Sequence[int]


class Rewrite:
    """Writes the nodes that replace `node`, named after the module that it comes from."""

    def __init__(self, graph: "Graph", node: "Node") -> None:
        """Start without nodes; the graph changes at `finish`, but for its constants."""
        from onnx_ir.tape import Tape

        self._graph, self._node, self._tape, self._home = graph, node, Tape(), path_of(node.name or "")
        self._taken = {other.name for other in graph}

    def __call__(self, kind: str, *inputs: "Value | None", domain: str = "", **attributes: Attribute) -> "Value":
        """Append a node of this operator and return its output."""
        return self.several(kind, 1, *inputs, domain=domain, **attributes)[0]

    def several(
        self, kind: str, number: int, *inputs: "Value | None", domain: str = "", **attributes: Attribute
    ) -> "Sequence[Value]":
        """Append a node of this operator and return its outputs, of which there are `number`."""
        outputs = self._tape.op_multi_out(kind, inputs, attributes, num_outputs=number, domain=domain)
        node = outputs[0].producer()
        assert node is not None
        names = (f"{self._home}/{kind}_{place}" for place in count(1))
        node.name = next(name for name in names if name not in self._taken)
        self._taken.add(node.name)
        for place, output in enumerate(outputs):
            output.name = f"{node.name}.{place}" if place else node.name
        return outputs

    def constant(self, name: str, value: ArrayLike, dtype: DTypeLike = np.int64) -> "Value":
        """Return a constant, which is called as the module with `name` after it, such as ".weight.00" or "/axes"."""
        import onnx_ir

        return self._added(onnx_ir.tensor(np.asarray(value, dtype), name=f"{self._home}{name}"))

    def computed(self, name: str, shape: Sequence[int], dtype: DTypeLike, compute: Callable[[], Array]) -> "Value":
        """Return a constant as `constant` does, of this shape and dtype, which is computed when it is written."""
        from onnx_ir import DataType, LazyTensor, Shape, tensor

        kind, full = DataType.from_numpy(np.dtype(dtype)), f"{self._home}{name}"
        return self._added(LazyTensor(lambda: tensor(compute()), kind, Shape(shape), name=full))

    def _added(self, tensor: "TensorProtocol") -> "Value":
        """Add a constant to the graph, or use the one of this name and these numbers that is there, and return it."""
        there = self._graph.initializers.get(tensor.name or "")
        if there is not None and np.array_equal(numbers_of(there), tensor.numpy()):
            return there
        added = self._tape.initializer(tensor)
        self._graph.register_initializer(added)
        return added

    def interleave(self, four: Sequence["Value"]) -> "Value":
        """Join four images of every second pixel to one of all pixels.

        Args:
            four: (batch, K, H, W) each: the pixels at (0, 0), (0, 1), (1, 0) and (1, 1) of every two by two.

        Returns:
            The image, (batch, K, 2H, 2W).
        """
        size = self("Mul", self("Shape", four[0]), self.constant("/double", [1, 1, 2, 2]))
        axes = self.constant("/apart", [3, 5])
        apart = [self("Unsqueeze", image, axes) for image in four]  # (batch, K, H, 1, W, 1)
        rows = [self("Concat", *apart[2 * a : 2 * a + 2], axis=5) for a in (0, 1)]
        return self("Reshape", self("Concat", *rows, axis=3), size)

    def replace(self, value: "Value", replacement: "Value") -> None:
        """Put `replacement` in the place of a value, under its name."""
        replacement.name, replacement.type, replacement.shape = value.name, value.type, value.shape
        value.replace_all_uses_with(replacement, replace_graph_outputs=True)

    def finish(self, replacement: "Value") -> None:
        """Put `replacement` in the place of the node's output, under its name, and remove the node."""
        self._graph.insert_before(self._node, self._tape.nodes)
        self.replace(self._node.outputs[0], replacement)
        self._graph.remove(self._node, safe=True)
