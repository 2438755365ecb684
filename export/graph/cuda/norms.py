"""GroupNorm on channels last, with what stands around it in a U-Net: SiLU after it, sums and biases before it.

    GroupNorm(x, scale, shift)                          norm, and SiLU where it follows
    SkipGroupNorm(x, scale, shift, skip, bias) -> y, s  s = x + skip + bias, and y = GroupNorm(s)

Both are ONNX Runtime's, in the layout that its convolutions prefer too. `skip` is what a residual block adds to its
convolution's output x: an image, or one number a channel for the time; `bias` is the convolution's own, which would be
a pass over the image of its own.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ldmrt.export.graph.rewrite import Rewrite

from .rewrites import MICROSOFT, TO_FIRST, TO_LAST, only_user, producer, rank, width

if TYPE_CHECKING:
    from onnx_ir import Graph, Node, Value


FLOAT = 1  # float32 of ONNX
WIDEST = 512  # channels of a group, that a block of the kernel takes, each thread of it two


@dataclass(frozen=True)
class _Norm:
    """A GroupNorm as `graph/group_norm.py` wrote it, and SiLU where it follows."""

    x: "Value"
    scale: "Value"  # (C, 1, 1), as `shift`
    shift: "Value"
    groups: int
    epsilon: float
    silu: bool
    last: "Node"  # whose output is that of the whole

    @classmethod
    def of(cls, node: "Node") -> "_Norm | None":
        """Find the norm around an InstanceNormalization; None where the kernel does not take it."""
        before, after = producer(node.inputs[0], "Reshape"), only_user(node.outputs[0], "Reshape")
        times = only_user(after.outputs[0], "Mul") if after is not None else None
        plus = only_user(times.outputs[0], "Add") if times is not None else None
        if before is None or times is None or plus is None or rank(before.inputs[0]) != 4:
            return None
        x, scale, shift, ones = before.inputs[0], times.inputs[1], plus.inputs[1], node.inputs[1]
        groups = width(ones, 0)
        assert x is not None
        assert scale is not None
        assert shift is not None
        assert groups is not None
        epsilon, channels = node.attributes["epsilon"].as_float(), width(x, 1)
        if channels is None or channels // groups % 2 or channels // groups > WIDEST:
            return None
        silu = _silu(plus.outputs[0])
        return cls(x, scale, shift, groups, epsilon, silu is not None, silu or plus)


def _silu(value: "Value") -> "Node | None":
    """Return the Mul of value * Sigmoid(value), where that is the value's only use."""
    users = {node.op_type: node for node in value.consumers()}
    if users.keys() != {"Sigmoid", "Mul"} or len(list(value.consumers())) != 2 or value.is_graph_output():
        return None
    return users["Mul"] if only_user(users["Sigmoid"].outputs[0], "Mul") is users["Mul"] else None


@dataclass(frozen=True)
class _Sum:
    """The sum that a norm is taken of: x + skip + the biases of the convolutions that made them."""

    total: "Value"
    x: "Value"
    skip: "Value"  # (N, C, H, W), or (N, C)
    biases: "tuple[Value, ...]"


def normalise_channels_last(graph: "Graph") -> bool:
    """Rewrite every GroupNorm; return whether there was one."""
    nodes = [node for node in graph if node.op_type == "InstanceNormalization"]
    for node in nodes:
        norm = _Norm.of(node)
        if norm is None:
            _in_steps(graph, node)
            continue
        put = Rewrite(graph, norm.last)
        scale, shift = (
            put("Cast", put("Reshape", one, put.constant("/all", [-1])), to=FLOAT) for one in (norm.scale, norm.shift)
        )
        options = {"groups": norm.groups, "activation": int(norm.silu), "channels_last": 1}
        total = _sum_before(norm.x)
        if total is None:
            x = put("Transpose", norm.x, perm=TO_LAST)
            y = put("GroupNorm", x, scale, shift, domain=MICROSOFT, epsilon=norm.epsilon, **options)
        else:
            x = put("Transpose", total.x, perm=TO_LAST)
            skip = put("Transpose", total.skip, perm=TO_LAST) if rank(total.skip) == 4 else total.skip
            bias = total.biases[0] if len(total.biases) == 1 else put("Add", *total.biases) if total.biases else None
            y, s = put.several(
                "SkipGroupNorm", 2, x, scale, shift, skip, bias, domain=MICROSOFT, epsilon=norm.epsilon, **options
            )
            put.replace(total.total, put("Transpose", s, perm=TO_FIRST))
        put.finish(put("Transpose", y, perm=TO_FIRST))
    return bool(nodes)


def _in_steps(graph: "Graph", node: "Node") -> None:
    """Write an InstanceNormalization on (batch, groups, numbers) as means and differences, in float32."""
    put, x = Rewrite(graph, node), node.inputs[0]
    assert x is not None
    last = put.constant("/last", [2])
    numbers = put("Cast", x, to=FLOAT)
    apart = put("Sub", numbers, put("ReduceMean", numbers, last))
    variance = put("ReduceMean", put("Mul", apart, apart), last)
    least = node.attributes["epsilon"].as_float()
    epsilon = put.constant(f"/epsilon_{least:g}", least, np.float32)
    normal = put("Div", apart, put("Sqrt", put("Add", variance, epsilon)))
    scale, shift = (
        put("Cast", put("Reshape", one, put.constant("/column", [-1, 1])), to=FLOAT) for one in node.inputs[1:3]
    )
    put.finish(put("CastLike", put("Add", put("Mul", normal, scale), shift), x))


def _sum_before(x: "Value") -> "_Sum | None":
    """Take apart the sum that a norm's input is; return None where no term is a convolution that the sum alone uses.

    Such convolutions lose their biases.
    """
    add = producer(x, "Add")
    if add is None:
        return None
    terms = [term for term in add.inputs if term is not None]
    convolutions = [node for term in terms if (node := producer(term, "Conv")) and only_user(term, "Add") is add]
    if not convolutions:
        return None
    main = convolutions[0]
    other = next((term for term in terms if term is not main.outputs[0]), None)
    spread = producer(other, "Unsqueeze")
    skip = spread.inputs[0] if spread is not None and rank(spread.inputs[0]) == 2 else other
    if other is None or skip is None or rank(skip) not in (2, 4) or other.dtype != x.dtype or x.is_graph_output():
        return None
    biases = tuple(bias for node in convolutions if len(node.inputs) > 2 and (bias := node.inputs[2]) is not None)
    for node in convolutions:
        if len(node.inputs) > 2:
            node.resize_inputs(2)
    return _Sum(x, main.outputs[0], skip, biases)
