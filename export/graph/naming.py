"""Names in an ONNX file: nodes and values are called after the modules that they come from.

A node is `<path>/<operator>`, as in `mid_block.resnets.0.conv1/Conv`, and what a module gives is called as the module.
Paths are those of the network's own modules: weights are called as in its state dict.
"""

import ast
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

SCOPES = "pkg.torch.onnx.name_scopes"  # a list of modules from the outermost, then the operation


def module_path(name: str) -> str:
    """A module's path within the network, of its path in a component, whose adapters keep the network as `model`."""
    return "" if name == "model" else name.removeprefix("model.")


def path_of(node: str) -> str:
    """The path of the innermost module that a node comes from; that of the network is empty."""
    return node.rpartition("/")[0]


def inside(path: str, module: str) -> bool:
    """Whether a path is a module's, or that of one within it."""
    return path == module or path.startswith(module + ".")


def name_after_modules(model: Any) -> None:
    """Name the nodes, values and weights of a graph that torch's exporter made; its inputs and outputs stay."""
    graph = model.graph
    for value in list(graph.initializers.values()):
        name = _path(value.name) if value.name.startswith("module.") else value.name
        if name not in graph.initializers:
            value.name = name
    modules: dict[Any, Sequence[str]] = {}  # of each node, from the outermost
    for node in reversed(graph):  # users first: optimisers leave no scopes, and then their users' are right
        known = _scopes(node)
        modules[node] = (
            _common(modules[user] for out in node.outputs for user in out.consumers()) if known is None else known
        )
    taken = {value.name for value in (*graph.inputs, *graph.outputs, *graph.initializers.values())}
    counts = Counter[str]()
    gives: dict[str, Any] = {}
    for node in graph:
        name = f"{modules[node][-1]}/{node.op_type}" if modules[node] else node.op_type
        node.name = f"{name}_{counts[name]}" if counts[name] else name
        counts[name] += 1
        for i, out in enumerate(node.outputs):
            if not out.is_graph_output():
                out.name = f"{node.name}.{i}" if len(node.outputs) > 1 else node.name
        if node.outputs[0].dtype is None or node.outputs[0].dtype.is_floating_point():  # else of a shape
            gives |= dict.fromkeys(modules[node], node.outputs[0] if len(node.outputs) == 1 else None)
    named = set[Any]()
    for module, value in gives.items():  # outer modules come before those within
        if value is not None and not value.is_graph_output() and value not in named and module not in taken:
            value.name = module
            named.add(value)


def _scopes(node: Any) -> list[str] | None:
    """The paths of the modules that were running when a node was traced, from the outermost."""
    scopes = node.metadata_props.get(SCOPES)
    if scopes is None:
        return None
    return [path for scope in ast.literal_eval(scopes)[:-1] if scope.startswith("module.") and (path := _path(scope))]


def _path(scope: str) -> str:
    return module_path(scope.removeprefix("module."))


def _common(paths: Iterable[Sequence[str]]) -> Sequence[str]:
    """Return what all lists begin with."""
    first, *others = list(paths) or [[]]
    length = 0
    while length < len(first) and all(other[: length + 1] == first[: length + 1] for other in others):
        length += 1
    return first[:length]
