"""The transformer blocks of a U-Net, and the attention of an autoencoder, in ONNX Runtime's operators for CUDA.

    MultiHeadAttention(q, k, v)                                   attention on heads side by side
    BiasSplitGelu(x, bias)                                        h * GELU(g), of the halves h and g of x + bias
    SkipLayerNormalization(x, skip, scale, shift, bias) -> y, s   s = x + skip + bias, and y = LayerNorm(s)

The last one's bias is that of the projection before it.
"""

from typing import TYPE_CHECKING

from ldmrt.export.graph.rewrite import Rewrite
from ldmrt.runtime.bundle.graphs import path_of

from .rewrites import MICROSOFT, TO_FIRST, TO_LAST, is_constant, only_user, producer, rank, width

if TYPE_CHECKING:
    from onnx_ir import Graph, Node, Value

GATES = (1280, 2560, 5120)  # widths that BiasSplitGelu has a kernel for
SWAP = (0, 2, 1)


def _nodes(graph: "Graph", kind: str) -> "list[Node]":
    return [node for node in graph if node.op_type == kind]


def attend(graph: "Graph") -> bool:
    """Rewrite every Attention on heads side by side, without a mask; return whether there was one."""
    found = [
        node
        for node in _nodes(graph, "Attention")
        if "q_num_heads" in node.attributes
        and not any(node.inputs[3:])
        and not node.attributes["is_causal"].as_int()
        and len(node.outputs) == 1
    ]
    for node in found:
        put = Rewrite(graph, node)
        scale = {"scale": node.attributes["scale"].as_float()} if "scale" in node.attributes else {}
        heads = node.attributes["q_num_heads"].as_int()
        put.finish(put("MultiHeadAttention", *node.inputs[:3], domain=MICROSOFT, num_heads=heads, **scale))
    return bool(found)


def keep_channels_last(graph: "Graph") -> bool:
    """Let blocks take their tokens from an image with channels last, and give them back so.

    (N, C, H, W) to (N, C, HW) to (N, HW, C) becomes (N, C, H, W) to (N, H, W, C) to (N, HW, C): where the image comes
    from a convolution that computes with channels last, nothing is moved.
    """
    images: dict[str, Value] = {}  # (N, H, W, C), by the module of the block
    for node in [node for node in _nodes(graph, "Transpose") if tuple(node.attributes["perm"].as_ints()) == SWAP]:
        home, into, out_of = (
            path_of(node.name or ""),
            producer(node.inputs[0], "Reshape"),
            only_user(node.outputs[0], "Reshape"),
        )
        image = into.inputs[0] if into is not None else None
        channels = None if image is None or into is None or rank(image) != 4 else width(image, 1)
        if image is not None and into is not None and channels is not None and channels == width(into.outputs[0], 1):
            put = Rewrite(graph, node)
            images[home] = put("Transpose", image, perm=TO_LAST)
            put.finish(put("Reshape", images[home], put.constant(f"/tokens{channels}", [0, -1, channels])))
        elif out_of is not None and rank(out_of.outputs[0]) == 4 and home in images:
            put = Rewrite(graph, out_of)
            last = put("Reshape", node.inputs[0], put("Shape", images[home]))
            put.finish(put("Transpose", last, perm=TO_FIRST))
    return bool(images)


def fuse_gated_gelu(graph: "Graph") -> bool:
    """Rewrite every GEGLU (Shazeer 2020, arXiv:2002.05202) of a width that has a kernel; return whether one had."""
    changed = False
    for node in [node for node in _nodes(graph, "Split") if len(node.outputs) == 2]:
        half, gate = node.outputs
        gelu = only_user(gate, "Gelu")
        times = only_user(gelu.outputs[0], "Mul") if gelu is not None else None
        plus = producer(node.inputs[0], "Add")
        if (
            gelu is None
            or times is None
            or plus is None
            or only_user(half, "Mul") is not times
            or width(half, -1) not in GATES
        ):
            continue
        x, bias = plus.inputs
        if not is_constant(bias) or not _exact(gelu):
            continue
        put = Rewrite(graph, times)
        put.finish(put("BiasSplitGelu", x, bias, domain=MICROSOFT))
        changed = True
    return changed


def _exact(gelu: "Node") -> bool:
    """Return whether a Gelu is the exact one, by the error function."""
    return "approximate" not in gelu.attributes or gelu.attributes["approximate"].as_string() == "none"


def fuse_residual_norms(graph: "Graph") -> bool:
    """Join every LayerNorm with the sum before it, and with the bias of the projection that is a term of the sum."""
    changed = False
    for node in _nodes(graph, "LayerNormalization"):
        if len(node.inputs) < 3:  # whose scale and shift are of the image
            continue
        total, (scale, shift) = node.inputs[0], node.inputs[1:3]
        add = producer(total, "Add")
        if (
            add is None
            or total is None
            or total.is_graph_output()
            or not rank(total) == rank(add.inputs[0]) == rank(add.inputs[1]) == 3
        ):
            continue
        x, skip, bias = _without_bias(add)
        put = Rewrite(graph, node)
        epsilon = node.attributes["epsilon"].as_float()
        y, mean, deviation, s = put.several(
            "SkipLayerNormalization", 4, x, skip, scale, shift, bias, domain=MICROSOFT, epsilon=epsilon
        )
        mean.name = deviation.name = ""  # outputs that nothing takes
        put.replace(total, s)
        put.finish(y)
        changed = True
    return changed


def _without_bias(add: "Node") -> "tuple[Value | None, Value | None, Value | None]":
    """Return the terms of a sum, and the bias that a projection adds to one of them."""
    for term, other in (add.inputs[::-1], add.inputs):
        plus = producer(term, "Add")
        if plus is None or term is None or only_user(term, "Add") is not add:
            continue
        x, bias = plus.inputs
        if producer(x, "MatMul") and is_constant(bias) and rank(bias) == 1:
            return x, other, bias
    return add.inputs[0], add.inputs[1], None
