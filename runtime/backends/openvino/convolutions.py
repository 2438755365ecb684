"""Writes convolutions back that a bundle holds as Winograd tiles, for precisions in which OpenVINO's own are faster.

The float32 graphs of a bundle compute wide 3x3 convolutions as y = A.T @ ((G @ w @ G.T) * (B.T @ d @ B)) @ A (Lavin and
Gray 2015, arXiv:1509.09308). That gains time in float32. In bfloat16 it costs time, and the tiles round the weights.
"""

import numpy as np

from ldmrt.runtime.tensors import Array

from .api import Model, Node
from .library import openvino

TILES = ".weight.tiles"  # how the name of a transformed weight (16, K, C) ends
TAKES, GIVES = "/Unsqueeze_1", "/Slice_1"  # the node that takes the features, and the one before the bias is added
SAME = {"strides": [1, 1], "pads_begin": [1, 1], "pads_end": [1, 1], "dilations": [1, 1]}


def weight_of(tiles: Array) -> Array:
    """Return the weight (K, C, 3, 3) of a convolution, up to rounding, from its tiles G @ w @ G.T, (16, K, C).

    The rows of G @ w are w[0], half of w[0] + w[1] + w[2], half of w[0] - w[1] + w[2], and w[2]; so are the columns.
    """
    first, more, less, last = tiles.reshape(4, 4, *tiles.shape[1:])
    rows = np.stack([first, more - less, last])  # (3, 4, K, C)
    weight = np.stack([rows[:, 0], rows[:, 1] - rows[:, 2], rows[:, 3]], axis=1)  # (3, 3, K, C)
    return np.ascontiguousarray(weight.transpose(2, 3, 0, 1))


def restore_convolutions(graph: Model) -> int:
    """Replace the tiles in a graph by convolutions, in place, and return how many."""
    nodes: dict[str, Node] = {node.get_friendly_name(): node for node in graph.get_ops()}
    operators, restored = openvino("backend").opset13, 0
    for name, constant in nodes.items():
        path = name.removesuffix(TILES)
        if name == path or not {path + TAKES, path + GIVES} <= nodes.keys():
            continue
        features, weight = nodes[path + TAKES].input_value(0), operators.constant(weight_of(constant.data))
        made = operators.convolution(features, weight, **SAME)
        made.set_friendly_name(f"{path}/Conv")
        nodes[path + GIVES].output(0).replace(made.output(0))
        restored += 1
    return restored
