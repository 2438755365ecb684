"""Attention whose heads lie side by side, (batch, tokens, heads * width), as the projections around it have them: so
ONNX takes them too, and no kernel has to move them apart and together again, as PyTorch's exporter asks for.
"""

from typing import Any


def attend_side_by_side(model: Any) -> None:
    """Rewrite every such Attention in a graph of onnx_ir; what nobody needs then stays."""
    from onnx_ir import AttrInt64

    for node in [node for node in model.graph if node.op_type == "Attention"]:
        sources, target = [_apart(value) for value in node.inputs[:3]], _together(node.outputs[0])
        if target is None or None in sources:
            continue  # such as heads that are cast in between
        query, key = (value.shape[1] for value in node.inputs[:2])
        node.attributes.add(AttrInt64("q_num_heads", query))
        node.attributes.add(AttrInt64("kv_num_heads", key))
        for i, source in enumerate(sources):
            node.replace_input_with(i, source)
        node.outputs[0].shape = target.shape
        target.replace_all_uses_with(node.outputs[0])


def _apart(value: Any) -> Any:
    """Find what was moved apart into this value, or None."""
    transpose = value.producer()
    reshape = transpose.inputs[0].producer() if _moves(transpose) else None
    source = reshape.inputs[0] if reshape is not None and reshape.op_type == "Reshape" else None
    return source if source is not None and len(source.shape) == 3 else None


def _together(value: Any) -> Any:
    """Find what this value is moved together into, where nobody else looks at it, or None."""
    for kind in ("Transpose", "Reshape"):
        if value.is_graph_output() or [node.op_type for node in value.consumers()] != [kind]:
            return None
        (node,) = value.consumers()
        if kind == "Transpose" and not _moves(node):
            return None
        (value,) = node.outputs
    return None if value.is_graph_output() else value


def _moves(node: Any) -> bool:
    return node is not None and node.op_type == "Transpose" and tuple(node.attributes["perm"].as_ints()) == (0, 2, 1, 3)
