"""Nodes that are written by hand into an ONNX graph, and the removal of those that nothing uses."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ldmrt.runtime.tensors import TensorSpec

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto


class NodeBuilder:
    """Collects nodes in the order in which they run, and their constants; all their names begin with `prefix`."""

    def __init__(self, prefix: str) -> None:
        """Start without nodes."""
        self.prefix = prefix
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def __call__(
        self,
        kind: str,
        *inputs: str,
        out: str = "",
        **attributes: Any,
    ) -> str:
        """Append a node with one output.

        Args:
            kind: The operator, such as "Reshape".
            inputs: Names of its inputs, "" for one that is absent.
            out: The name of its output; where it is empty, one is made from the prefix, the operator and a number.
            attributes: The operator's attributes: numbers, texts, lists of them, or a graph.

        Returns:
            The name of the output.
        """
        from onnx import helper

        name = f"{self.prefix}/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out or name], name=name, **attributes))
        return out or name

    def constant(self, name: str, value: ArrayLike, dtype: DTypeLike = np.int64) -> str:
        """Append a constant and return its full name, prefix included."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.array(value, dtype), f"{self.prefix}/{name}"))
        return str(self.constants[-1].name)


def value_info(spec: TensorSpec) -> "ValueInfoProto":
    """Describe an input or output as ONNX graphs do."""
    from onnx import helper

    return helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), spec.shape)


def remove_dead_nodes(graph: "GraphProto") -> None:
    """Remove the nodes, weights and value infos that no output of the graph depends on."""
    needed, nodes = {output.name for output in graph.output}, []
    for node in reversed(graph.node):  # users first
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
            for attribute in node.attribute:
                needed.update(name for inner in attribute.g.node for name in inner.input)
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    infos = [info for info in graph.value_info if info.name in needed]
    del graph.initializer[:], graph.value_info[:], graph.node[:]
    graph.initializer.extend(weights)
    graph.value_info.extend(infos)
    graph.node.extend(reversed(nodes))
