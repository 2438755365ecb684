"""Nodes written by hand beside those that were exported."""

from typing import Any

import numpy as np

from ldmrt.runtime.tensors import TensorSpec


class NodeBuilder:
    """Nodes in the order that they run, and their constants, whose names begin with `prefix`."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Append a node: the name of what it gives, `out` or one of its own."""
        from onnx import helper

        name = f"{self.prefix}/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out or name], name=name, **attributes))
        return out or name

    def constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        """Append a constant and return its name."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.array(value, dtype), f"{self.prefix}/{name}"))
        return str(self.constants[-1].name)


def value(spec: TensorSpec) -> Any:
    """Describe an input or output as a graph does."""
    from onnx import helper

    return helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), spec.shape)


def remove_dead_nodes(graph: Any) -> None:
    """Leave out of a graph what its outputs do not hang on: nodes, weights, and shapes that were noted."""
    needed, nodes = {one.name for one in graph.output}, []
    for node in reversed(graph.node):  # users first
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
            for attribute in node.attribute:
                needed.update(name for inner in attribute.g.node for name in inner.input)
    for held in (graph.initializer, graph.value_info):
        kept = [one for one in held if one.name in needed]
        del held[:]
        held.extend(kept)
    del graph.node[:]
    graph.node.extend(reversed(nodes))
