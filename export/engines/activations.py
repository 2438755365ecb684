"""Counts the bytes of activations that a graph holds at once, for given input shapes.

The shapes of all its values are inferred node by node, with the node at which each is last needed. No weights are read.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ldmrt.runtime.tensors import Array, Arrays

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TypeProto

SMALL = 1024  # elements: values that shapes are computed from are smaller
# The same bytes under another shape, or a factor of the product that follows, which no kernel writes to memory.
VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Split", "Identity", "Flatten", "Sigmoid", "Gelu"}
WIDEST = 256  # numbers of a head: in half precision a kernel fuses the attention of one that is no wider
IN_PLACE = {"Add", "Mul", "Sub", "Div", "Cast", "InstanceNormalization", "LayerNormalization"}  # ends what it read


@dataclass(frozen=True)
class Activations:
    """Counts the activations of one graph at one size."""

    live: int  # bytes at the fullest moment, without inputs and outputs
    nodes: int


def activations(model: "ModelProto", shapes: Mapping[str, tuple[int, ...]]) -> Activations:
    """Walk an `onnx.ModelProto` whose inputs have these shapes."""
    import onnx

    graph = model.graph
    opsets = {one.domain: one.version for one in model.opset_import}
    types: dict[str, TypeProto] = {}
    known: Arrays = {}  # values that shapes are computed from
    for tensor in graph.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        if tensor.data_location != onnx.TensorProto.EXTERNAL and math.prod(tensor.dims) <= SMALL:
            known[tensor.name] = onnx.numpy_helper.to_array(tensor)
    for value in graph.input:
        element = value.type.tensor_type.elem_type
        types[value.name] = onnx.helper.make_tensor_type_proto(element, list(shapes[value.name]))
    ends = {value.name for value in graph.output}
    last = _last_uses(graph.node, ends)
    kept = {*types, *ends}
    alive: dict[str, int] = {}
    peak = 0
    for place, node in enumerate(graph.node):
        if node.op_type == "Constant":
            known[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Shape":
            known[node.output[0]] = _shape_of(node, types[node.input[0]])
        elif all(name in known for name in node.input if name):
            _evaluate(node, known, opsets)
        else:
            types |= _infer(node, types, known, opsets)
        for name in node.output:
            if name in known:
                value = np.asarray(known[name])
                element = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
                types[name] = onnx.helper.make_tensor_type_proto(element, list(value.shape))
            if name and name not in kept and name not in known and node.op_type not in VIEWS:
                alive[name] = nbytes(types[name])
        held = sum(alive.values()) + _scores(node, types)
        for name in [name for name in alive if last.get(name, -1) <= place]:
            del alive[name]
        peak = max(peak, sum(alive.values()) if node.op_type in IN_PLACE else held)
    return Activations(peak, len(graph.node))


def _scores(node: "NodeProto", types: "Mapping[str, TypeProto]") -> int:
    """Return the bytes of the scores and their softmax in attention that no kernel fuses: in float32, of wide heads."""
    import onnx

    if node.op_type != "Attention":
        return 0
    query, key = ([dim.dim_value for dim in types[name].tensor_type.shape.dim] for name in node.input[:2])
    heads = next((one.i for one in node.attribute if one.name == "q_num_heads"), None)
    width = query[-1] // heads if heads else query[-1]
    element = types[node.input[0]].tensor_type.elem_type
    if element != onnx.TensorProto.FLOAT and width <= WIDEST:
        return 0
    size = onnx.helper.tensor_dtype_to_np_dtype(element).itemsize
    return 2 * query[0] * (heads or query[1]) * query[-2] * key[-2] * size


def _last_uses(nodes: "Iterable[NodeProto]", outputs: Collection[str] = ()) -> dict[str, int]:
    """Return the last node that reads each value: directly, through a view, or through an interleaved copy.

    A cast to an output of the graph holds nothing, for it runs with the kernel that makes the value: a text encoder
    casts the states of every layer at the end of its graph, and its engine does not keep them until then.
    """
    last: dict[str, int] = {}
    direct: dict[str, int] = {}
    for place, node in reversed(list(enumerate(nodes))):
        until = place
        if node.op_type in VIEWS:
            until = max((last.get(name, place) for name in node.output), default=place)
        elif _interleaves(node):  # TensorRT does several at once
            until = direct.get(node.output[0], place)
        elif node.op_type == "Cast" and node.output[0] in outputs:
            continue
        for name in node.input:
            last[name] = max(last.get(name, place), until)
            direct.setdefault(name, place)
    return last


def _interleaves(node: "NodeProto") -> bool:
    """Whether a node puts pixels between pixels."""
    return node.op_type == "Concat" and any(one.name == "axis" and one.i > 1 for one in node.attribute)


def read(path: Path) -> "ModelProto":
    """Read a graph without the weights beside it."""
    import onnx

    return onnx.load(str(path), load_external_data=False)


def nbytes(tensor_type: "TypeProto") -> int:
    """Return how many bytes a tensor of this type takes."""
    import onnx

    one = tensor_type.tensor_type
    size = onnx.helper.tensor_dtype_to_np_dtype(one.elem_type).itemsize
    return math.prod(dim.dim_value for dim in one.shape.dim) * size


def _shape_of(node: "NodeProto", tensor_type: "TypeProto") -> Array:
    """Compute a Shape node."""
    dims = [dim.dim_value for dim in tensor_type.tensor_type.shape.dim]
    ends = {one.name: one.i for one in node.attribute}
    return np.array(dims[ends.get("start", 0) : ends.get("end", len(dims))], np.int64)


def _evaluate(node: "NodeProto", known: Arrays, opsets: Mapping[str, int]) -> None:
    """Compute a node whose inputs are known, by ONNX's reference."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    feeds = {name: np.asarray(known[name]) for name in node.input if name}
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), None)
        for name, value in feeds.items()
    ]
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in node.output]
    graph = onnx.helper.make_graph([node], "one", inputs, outputs)
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    results = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=imports)).run(None, feeds)
    assert isinstance(results, list)
    known.update(zip(node.output, results, strict=True))


def _infer(
    node: "NodeProto", types: "Mapping[str, TypeProto]", known: Arrays, opsets: Mapping[str, int]
) -> "dict[str, TypeProto]":
    """Return the types of a node's outputs; the first input's where ONNX infers none, as norms keep their shape."""
    import onnx

    inputs = {name: types[name] for name in node.input if name}
    values = {name: onnx.numpy_helper.from_array(np.asarray(known[name]), name) for name in inputs if name in known}
    schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    found = onnx.shape_inference.infer_node_outputs(schema, node, inputs, values, opset_imports=imports)
    whole = {
        name: one
        for name, one in found.items()
        if one.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in one.tensor_type.shape.dim)
    }
    return {name: whole.get(name, types[node.input[0]]) for name in node.output if name}
