"""Cuts decoder and encoder into two parts each, so that an image computed in tiles is the image of the whole.

The parts stand beside the component's own graph and share its weights:

vae_decoder/vae_decoder_front.onnx   the middle, which attends, a row of latents at a time: latents to `features`
vae_decoder/vae_decoder_tile.onnx    the layers that enlarge a tile of `features` to pixels
vae_encoder/vae_encoder_tile.onnx    the layers that reduce a tile of pixels to `features`, as small as latents
vae_encoder/vae_encoder_back.onnx    the middle, as above, and the layers after it

The layers that run in tiles see no further than a few latents, except for their norms. Those take mean and variance as
inputs, and output the moments of the tile.

d = x - mean                            x, of a group of channels
moment_1, moment_2 = <d>, <d * d>       means over the tile, each latent's pixels weighted by its `share`
mean', variance' = mean, variance       or, where `own` is 1, the tile's own, from its moments
y = (x - mean') / sqrt(variance' + eps)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ldmrt.export.components.autoencoder_parts import FEATURES, MIDDLE
from ldmrt.runtime.bundle.graphs import TILE
from ldmrt.runtime.tensors import Specs

from .builder import NodeBuilder, remove_dead_nodes, value_info
from .checks import write_graph
from .module_graph import Graph

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto


def write_tiles(component: str, path: Path, specs: Mapping[str, tuple[Specs, Specs]]) -> None:
    """Write both parts of a decoder or an encoder beside its own graph.

    Args:
        component: The component's name, for messages.
        path: Its model.onnx, which is not changed.
        specs: Inputs and outputs of each part by its name, as `tile_specs` states them.

    Raises:
        LdmrtError: The graph cannot be read, or a part is not valid.
    """
    for name, (inputs, outputs) in specs.items():
        named = Graph.read(component, path)
        graph = named.proto.graph
        types = {info.name: info.type.tensor_type.elem_type for info in graph.value_info}
        nodes = _cut(named, types, begins=inputs[0].name == FEATURES)
        del graph.node[:], graph.input[:], graph.output[:]
        graph.node.extend(nodes)
        graph.input.extend(map(value_info, inputs))
        graph.output.extend(map(value_info, outputs))
        remove_dead_nodes(graph)
        if name.endswith(TILE):
            _take_statistics(graph, types)
        else:
            _attend_by_rows(graph, inputs[0].name, types)
        remove_dead_nodes(graph)
        file = path.with_name(f"{name}.onnx")
        write_graph(component, file.name, named.proto, file)


def _cut(named: Graph, types: Mapping[str, int], *, begins: bool) -> "list[NodeProto]":
    """Return the nodes of the part that begins with the features, or else of the one that ends with them."""
    import onnx

    nodes, joint = named.proto.graph.node, NodeBuilder(FEATURES)
    at = named.gives.get(f"decoder.{MIDDLE}") or named.takes[f"encoder.{MIDDLE}"]
    if begins:
        joint("Cast", FEATURES, to=types[at], out=at)
        for node in nodes:
            if node.op_type == "Shape" and node.input[0] in (
                "sample",
                "latent_sample",
            ):  # of which it reads the batch size
                node.input[0] = FEATURES
        return [*joint.nodes, *(node for node in nodes if at not in node.output)]
    joint("Cast", at, to=onnx.TensorProto.FLOAT, out=FEATURES)
    return [*nodes, *joint.nodes]


def _attend_by_rows(graph: "GraphProto", latents: str, types: Mapping[str, int]) -> None:
    """Let each Attention compute one row of latents after the other, so that only a row's scores are in memory."""
    nodes = list["NodeProto"]()
    for node in graph.node:
        if node.op_type == "Attention":
            new = _by_rows(node, latents, types[node.input[0]])
            nodes += new.nodes
            graph.initializer.extend(new.constants)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _by_rows(node: "NodeProto", latents: str, kind: int) -> NodeBuilder:
    """Write an Attention as a Loop over rows of latents.

    A Scan would be shorter, but OpenVINO 2026.4 does not read one that uses values from around it.

    Args:
        node: The Attention, whose queries are (batch, h * w, C).
        latents: The name of the graph's input, (batch, C', h, w), which says how many rows there are.
        kind: ONNX's number of the queries' dtype.
    """
    from onnx import TensorProto, helper

    query, key, values = node.input
    new = NodeBuilder(f"{node.name}/rows")
    rows = new("Shape", latents, start=2, end=3)
    same, rest = new.constant("same", [0]), new.constant("rest", [-1])
    sizes = new("Concat", same, rows, rest, new("Shape", query, start=2, end=3), axis=0)
    cut = new("Reshape", query, sizes)  # (batch, h, w, C)
    number, going = f"{new.prefix}/number", f"{new.prefix}/going"
    once = NodeBuilder(f"{new.prefix}/row")
    out = once("Attention", once("Gather", cut, number, axis=1), key, values)
    once.nodes[-1].attribute.extend(node.attribute)
    goes_on = once("Identity", going)
    whole, truth = TensorProto.INT64, TensorProto.BOOL
    takes = [helper.make_tensor_value_info(number, whole, []), helper.make_tensor_value_info(going, truth, [])]
    gives = [helper.make_tensor_value_info(goes_on, truth, []), helper.make_tensor_value_info(out, kind, [None] * 3)]
    body = helper.make_graph(once.nodes, f"{new.prefix}/body", takes, gives)
    always = new.constant("always", True, np.bool_)
    attended = new("Loop", new("Squeeze", rows), always, body=body)  # (h, batch, w, C)
    new("Reshape", new("Transpose", attended, perm=[1, 0, 2, 3]), new("Shape", query), out=node.output[0])
    return new


def _take_statistics(graph: "GraphProto", types: Mapping[str, int]) -> None:
    """Let the norms use the statistics of the graph's inputs, and output the moments of the tile."""
    import onnx

    last = NodeBuilder("tile")
    maker = {node.output[0]: node for node in graph.node}
    share = last("Unsqueeze", "share", last.constant("ends", [0, 1]))
    nodes, moments = list["NodeProto"](), list[tuple[str, str]]()
    for node in graph.node:
        if node.op_type != "InstanceNormalization":
            nodes.append(node)
            continue
        new = NodeBuilder(f"{node.name}/tile")
        kind = types[node.input[0]]
        narrow = kind if kind != onnx.TensorProto.FLOAT else 0
        moments.append(_norm(new, node, maker[node.input[0]].input[0], share, len(moments), narrow))
        graph.initializer.extend(new.constants)
        nodes += new.nodes
    for i in range(2):
        last("Concat", *(pair[i] for pair in moments), axis=2, out=f"moment_{i + 1}")
    del graph.node[:]
    graph.node.extend([*last.nodes[:1], *nodes, *last.nodes[1:]])
    graph.initializer.extend(last.constants)


def _norm(
    new: NodeBuilder,
    node: "NodeProto",
    features: str,
    share: str,
    number: int,
    narrow: int,
) -> tuple[str, str]:
    """Write an InstanceNormalization of (batch, groups, numbers) that takes its statistics from outside.

    Args:
        new: Takes the nodes.
        node: The InstanceNormalization.
        features: Its input before it was cut into groups, (batch, C, H, W).
        share: The weight of each latent, (1, 1, h, w).
        number: The norm's place among the graph's norms: its statistics are those at this place of the last axis.
        narrow: ONNX's number of its dtype where that is not float32, else 0.

    Returns:
        The names of the tile's moments, (batch, groups, 1) each.
    """
    import onnx

    (x, *_), (out,) = node.input, node.output
    eps = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
    sizes = new("Concat", new.constant("one", [1, 1]), new("Shape", features, start=2, end=4), axis=0)
    copies = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    spread = new("Resize", share, "", "", sizes, **copies)
    flat = new("Reshape", spread, new.constant("flat", [1, -1]))  # (1, H * W)
    channels = new("Div", new("Shape", features, start=1, end=2), new("Shape", x, start=1, end=2))  # of a group
    wanted = new("Concat", channels, new("Shape", flat, start=1, end=2), axis=0)
    weights = new("Reshape", new("Expand", flat, wanted), new.constant("column", [-1, 1]))
    total = new("ReduceSum", weights)  # (1, 1)
    place = new.constant("number", [number])
    mean, variance = (new("Gather", name, place, axis=2) for name in ("mean", "variance"))
    d = new("Sub", new("Cast", x, to=onnx.TensorProto.FLOAT) if narrow else x, mean)
    first = new("Div", new("MatMul", d, weights), total)
    second = new("Div", new("MatMul", new("Mul", d, d), weights), total)
    own = new("Sub", new("Sub", second, new("Mul", first, first)), variance)
    variance = new("Add", variance, new("Mul", own, "own"))
    deviation = new("Sqrt", new("Add", variance, new.constant("eps", eps, np.float32)))
    y = new("Div", new("Sub", d, new("Mul", first, "own")), deviation, out="" if narrow else out)
    if narrow:
        new("Cast", y, to=narrow, out=out)
    return first, second
