"""Names in an ONNX file: nodes and values are called after the modules that they come from.

A node is `<path>/<operator>`, as in `mid_block.resnets.0.conv1/Conv`, and a module's output is called as the module.
Paths are those of the network's own modules: weights are called as in its state dict. A constant is called after the
first node that reads it and which of its inputs it is: `mid_block.attentions.0/Reshape/constant_1`.
"""

import ast
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx_ir import Model, Node, Value

SCOPES = "pkg.torch.onnx.name_scopes"  # a list of modules from the outermost, then the operation


def module_path(name: str) -> str:
    """Return a module's path within the network.

    Args:
        name: Its path within a component, whose wrapper keeps the network as `model`: "model.conv_in" gives "conv_in".
    """
    return "" if name == "model" else name.removeprefix("model.")


def name_after_modules(model: "Model") -> None:
    """Name the nodes, values and weights of a graph that torch's exporter made; its inputs and outputs stay.

    Of several nodes with one operator in a module, the later ones get a number: `conv/Reshape`, `conv/Reshape_1`.
    """
    graph = model.graph
    constants = set["Value"]()
    for weight in list(graph.initializers.values()):
        old = _name(weight)
        if not old.startswith("module."):
            constants.add(weight)
        elif (new := _path(old)) not in graph.initializers:
            weight.name = new
    modules: dict[Node, Sequence[str]] = {}  # of each node, from the outermost
    for node in reversed(graph):  # users first: optimisers leave no scopes, and then their users' are right
        scopes = _scopes(node)
        modules[node] = (
            _common(modules[user] for out in node.outputs for user in out.consumers()) if scopes is None else scopes
        )
    taken = {value.name for value in (*graph.inputs, *graph.outputs, *graph.initializers.values())}
    counts = Counter[str]()
    gives: dict[str, Value | None] = {}
    for node in graph:
        name = f"{modules[node][-1]}/{node.op_type}" if modules[node] else node.op_type
        node.name = f"{name}_{counts[name]}" if counts[name] else name
        counts[name] += 1
        for i, out in enumerate(node.outputs):
            if not out.is_graph_output():
                out.name = f"{node.name}.{i}" if len(node.outputs) > 1 else node.name
        for i, constant in enumerate(node.inputs):
            if constant in constants:  # else it is a weight, or an earlier node has named it
                constants.remove(constant)
                constant.name = f"{node.name}/constant_{i}"
        first = node.outputs[0]
        if first.dtype is None or first.dtype.is_floating_point():  # else it is of a shape
            gives |= dict.fromkeys(modules[node], first if len(node.outputs) == 1 else None)
    named = set["Value"]()
    for module, output in gives.items():  # outer modules come before those within
        if output is not None and not output.is_graph_output() and output not in named and module not in taken:
            output.name = module
            named.add(output)


def _name(value: "Value") -> str:
    """Return a value's name; the exporter names every weight."""
    return value.name or ""


def _scopes(node: "Node") -> list[str] | None:
    """Return the paths of the modules that ran when a node was traced, from the outermost; None where none is noted."""
    scopes = node.metadata_props.get(SCOPES)
    if scopes is None:
        return None
    return [path for scope in ast.literal_eval(scopes)[:-1] if scope.startswith("module.") and (path := _path(scope))]


def _path(scope: str) -> str:
    """Return the path within the network of a scope that the exporter noted, such as "module.model.conv_in"."""
    return module_path(scope.removeprefix("module."))


def _common(paths: Iterable[Sequence[str]]) -> Sequence[str]:
    """Return the beginning that all lists share."""
    first, *others = list(paths) or [[]]
    length = 0
    while length < len(first) and all(other[: length + 1] == first[: length + 1] for other in others):
        length += 1
    return first[:length]
