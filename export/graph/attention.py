"""Attention on heads that lie side by side, (batch, tokens, heads * width), as the projections around it leave them.

PyTorch's exporter moves the heads to an axis of their own before each Attention and back after it. ONNX's Attention
also takes them side by side, so both moves are removed, and no kernel has to copy the tensors.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx_ir import Model, Node, Value


def attend_side_by_side(model: "Model") -> None:
    """Rewrite every Attention whose heads are moved apart before it and together after it.

    Nodes that are dead then stay in the graph; the caller removes them.
    """
    from onnx_ir import AttrInt64

    for node in [node for node in model.graph if node.op_type == "Attention"]:
        sources, target = [_side_by_side_source(value) for value in node.inputs[:3]], _merged_output(node.outputs[0])
        if target is None or None in sources:
            continue  # such as heads that are cast in between
        for name, value in zip(("q_num_heads", "kv_num_heads"), node.inputs[:2], strict=True):
            heads = None if value is None or value.shape is None else value.shape[1]
            assert isinstance(heads, int)  # the network's, not a symbol
            node.attributes.add(AttrInt64(name, heads))
        for i, source in enumerate(sources):
            node.replace_input_with(i, source)
        node.outputs[0].shape = target.shape
        target.replace_all_uses_with(node.outputs[0])


def _side_by_side_source(value: "Value | None") -> "Value | None":
    """Return the (batch, tokens, heads * width) value that a Reshape and a Transpose turned into this one, or None."""
    transpose = None if value is None else value.producer()
    moved = transpose.inputs[0] if transpose is not None and _swaps_heads(transpose) else None
    reshape = None if moved is None else moved.producer()
    source = reshape.inputs[0] if reshape is not None and reshape.op_type == "Reshape" else None
    return source if source is not None and source.shape is not None and len(source.shape) == 3 else None


def _merged_output(value: "Value") -> "Value | None":
    """Return the value that a Transpose and a Reshape make of this one, or None where it has other uses."""
    for kind in ("Transpose", "Reshape"):
        if value.is_graph_output() or [node.op_type for node in value.consumers()] != [kind]:
            return None
        (node,) = value.consumers()
        if kind == "Transpose" and not _swaps_heads(node):
            return None
        (value,) = node.outputs
    return None if value.is_graph_output() else value


def _swaps_heads(node: "Node") -> bool:
    """Return whether a node exchanges the axes of tokens and heads."""
    return node.op_type == "Transpose" and tuple(node.attributes["perm"].as_ints()) == (0, 2, 1, 3)
