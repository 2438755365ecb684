"""Decoder and encoder, each in two parts beside its own graph and of its weights, so that an image can be taken in
tiles as parts of the whole:

vae_decoder/vae_decoder_front.onnx   its middle, which attends, a row of latents at a time: latents to `features`
vae_decoder/vae_decoder_tile.onnx    what enlarges them to pixels
vae_encoder/vae_encoder_tile.onnx    what makes pixels `features`, as small as latents
vae_encoder/vae_encoder_back.onnx    its middle, as above, and what follows

What runs in tiles looks no further than a few latents, but for its norms: they take mean and variance from outside, and
say what they find.

d = x - mean                            x, of a group of channels
moment_1, moment_2 = <d>, <d * d>       means over the tile, each latent's pixels counted by its `share`
mean', variance' = mean, variance       or, where `own` is 1, the tile's own, from its moments
y = (x - mean') / sqrt(variance' + eps)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldmrt.export.components.autoencoder_parts import FEATURES, MIDDLE
from ldmrt.runtime.bundle.graphs import TILE
from ldmrt.runtime.tensors import Specs

from .builder import NodeBuilder, remove_dead_nodes, value
from .checks import write_graph
from .module_graph import Graph


def write_tiles(component: str, path: Path, specs: Mapping[str, tuple[Specs, Specs]]) -> None:
    """Write both parts, whose ends are `specs` by their names, beside the graph at `path`, which stays."""
    for name, (inputs, outputs) in specs.items():
        named = Graph.read(component, path)
        graph = named.proto.graph
        types = {one.name: one.type.tensor_type.elem_type for one in graph.value_info}
        nodes = _cut(named, types, begins=inputs[0].name == FEATURES)
        del graph.node[:], graph.input[:], graph.output[:]
        graph.node.extend(nodes)
        graph.input.extend(map(value, inputs))
        graph.output.extend(map(value, outputs))
        remove_dead_nodes(graph)
        if name.endswith(TILE):
            _tell_norms(graph, types)
        else:
            _attend_by_rows(graph, inputs[0].name, types)
        remove_dead_nodes(graph)
        file = path.with_name(f"{name}.onnx")
        write_graph(component, file.name, named.proto, file)


def _cut(named: Graph, types: Mapping[str, int], *, begins: bool) -> list[Any]:
    """The nodes of a graph that begins with its features, or ends."""
    import onnx

    nodes, joint = named.proto.graph.node, NodeBuilder(FEATURES)
    at = named.gives.get(f"decoder.{MIDDLE}") or named.takes[f"encoder.{MIDDLE}"]
    if begins:
        joint("Cast", FEATURES, to=types[at], out=at)
        for node in nodes:
            if node.op_type == "Shape" and node.input[0] in ("sample", "latent_sample"):  # for how many there are
                node.input[0] = FEATURES
        return [*joint.nodes, *(node for node in nodes if at not in node.output)]
    joint("Cast", at, to=onnx.TensorProto.FLOAT, out=FEATURES)
    return [*nodes, *joint.nodes]


def _attend_by_rows(graph: Any, latents: str, types: Mapping[str, int]) -> None:
    """Attention of one row of latents after the other, whose scores are a row's alone."""
    nodes = list[Any]()
    for node in graph.node:
        if node.op_type == "Attention":
            new = _by_rows(node, latents, types[node.input[0]])
            nodes += new.nodes
            graph.initializer.extend(new.constants)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _by_rows(node: Any, latents: str, kind: int) -> NodeBuilder:
    """An Attention whose queries, (batch, h * w, C), come in the h rows of `latents`, (batch, C', h, w)."""
    from onnx import helper

    query, key, values = node.input
    new = NodeBuilder(f"{node.name}/rows")
    rows = new("Shape", latents, start=2, end=3)
    same, rest = new.constant("same", [0]), new.constant("rest", [-1])
    sizes = new("Concat", same, rows, rest, new("Shape", query, start=2, end=3), axis=0)
    cut = new("Reshape", query, sizes)  # (batch, h, w, C)
    row, out = (helper.make_tensor_value_info(f"{new.prefix}/{name}", kind, [None] * 3) for name in ("row", "out"))
    attend = helper.make_node("Attention", [row.name, key, values], [out.name], name=f"{new.prefix}/attend")
    attend.attribute.extend(node.attribute)
    body = helper.make_graph([attend], f"{new.prefix}/body", [row], [out])
    made = new("Scan", cut, body=body, num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1])
    new("Reshape", made, new("Shape", query), out=node.output[0])
    return new


def _tell_norms(graph: Any, types: Mapping[str, int]) -> None:
    """Let norms use given statistics."""
    import onnx

    last = NodeBuilder("tile")
    maker = {node.output[0]: node for node in graph.node}
    share = last("Unsqueeze", "share", last.constant("ends", [0, 1]))
    nodes, moments = list[Any](), list[tuple[str, str]]()
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


def _norm(new: NodeBuilder, node: Any, features: str, share: str, number: int, narrow: int) -> tuple[str, str]:
    """An InstanceNormalization of (batch, groups, numbers) by given statistics: its moments, (batch, groups, 1).

    `features` are what it normalises before they were cut into groups, (batch, C, H, W).
    """
    import onnx

    (x, *_), (out,) = node.input, node.output
    eps = next((one.f for one in node.attribute if one.name == "epsilon"), 1e-5)
    sizes = new("Concat", new.constant("one", [1, 1]), new("Shape", features, start=2, end=4), axis=0)
    spread = new(
        "Resize", share, "", "", sizes,
        mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip
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
