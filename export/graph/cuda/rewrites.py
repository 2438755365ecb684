"""What the rewrites for CUDA share: how nodes and values are found."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx_ir import Node, Value

MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # (batch, C, H, W) to (batch, H, W, C), and back


def producer(value: "Value | None", *kinds: str) -> "Node | None":
    """Return the node that computes a value, where it is of one of these operators."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type in kinds else None


def only_user(value: "Value", *kinds: str) -> "Node | None":
    """Return the one user of a value that the graph does not return, where it is of one of these operators."""
    users = list(value.consumers())
    if len(users) != 1 or value.is_graph_output():
        return None
    return users[0] if users[0].op_type in kinds else None


def rank(value: "Value | None") -> int | None:
    """Return the number of a value's dimensions; None where it is not known."""
    return None if value is None or value.shape is None else len(value.shape)


def width(value: "Value | None", axis: int) -> int | None:
    """Return the size of an axis; None where it is a symbol or not known."""
    size = None if value is None or value.shape is None else value.shape[axis]
    return size if isinstance(size, int) else None


def is_constant(value: "Value | None") -> bool:
    """Tell whether a value is one of the graph's weights or constants."""
    return value is not None and value.const_value is not None
