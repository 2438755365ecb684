"""Computes a 3x3 convolution by Winograd's F(2x2, 3x3) with 4/9 of the multiplications.

Lavin and Gray 2015, arXiv:1509.09308:

y = A.T @ ((G @ w @ G.T) * (B.T @ d @ B)) @ A       for each 4x4 pixels d, two apart: the 2x2 in their middle

Summed over the channels, the products are 16 matrix products. All numbers of G, B and A are 0, 1, -1 or a half, so the
rounding error is about twice that of the convolution. Weights take 16/9 of the memory.

Only float32 graphs are rewritten, as in `upsample`: in a narrower type G would round the weights, and GPUs have kernels
of their own.
"""

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ldmrt.export.graph.rewrite import Rewrite, constant_of, numbers_of
from ldmrt.runtime.files.lora.kernels import TILES, tiles_of
from ldmrt.runtime.tensors import Array

if TYPE_CHECKING:
    from onnx_ir import Model, Node, Value

B = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]).T
A = np.array([[1, 1, 1, 0], [0, 1, -1, -1]]).T
# Least number of input and of output channels: with fewer, moving numbers costs what multiplying saves.
FEWEST = 320
# Most pairs of channels for each pixel that is convolved while an image is drawn: with more, tiles save too little for
# the memory that their weights take.
MOST = 250
SIZE = {"batch": 1, "h": 32, "w": 32}  # of that image, in latents
PLAIN = {"auto_pad": "NOTSET", "group": 1, "strides": (1, 1), "dilations": (1, 1)}


def kernels(weight: Array) -> Iterator[tuple[str, Array]]:
    """Transform the weight of a convolution, G @ w @ G.T, in float64.

    Args:
        weight: (K, C, 3, 3), of any floating-point dtype.

    Yields:
        How the new weight's name ends, and the weight, (16, K, C), of the old one's dtype.
    """
    yield TILES, tiles_of(weight)


def convolve_by_tiles(model: "Model", runs: int) -> None:
    """Rewrite the convolutions for which tiles pay, in a graph whose nodes are named.

    Nodes that are dead then stay in the graph; the caller removes them.

    Args:
        model: The graph.
        runs: How often it runs while one image is drawn.
    """
    for conv in [node for node in model.graph if node.op_type == "Conv"]:
        if _fits(conv, runs):
            op = Rewrite(model.graph, conv)
            op.finish(_by_tiles(op, *conv.inputs))


def _fits(conv: "Node", runs: int) -> bool:
    """Return whether a convolution is 3x3 with a bias, keeps the image's size, and has channels for which tiles pay."""
    values = [value.const_value for value in conv.inputs[1:] if value is not None]
    constants = [constant for constant in values if constant is not None]
    how = PLAIN | {name: attribute.value for name, attribute in conv.attributes.items() if name != "kernel_shape"}
    if len(constants) != 2 or how != PLAIN | {"pads": (1, 1, 1, 1)}:
        return False
    outputs, inputs, *sides = constants[0].shape.numpy()
    shape = conv.outputs[0].shape
    area = [] if shape is None else [side for side in shape.evaluate(SIZE)[2:] if isinstance(side, int)]
    if sides != [3, 3] or min(outputs, inputs) < FEWEST or len(area) != 2:
        return False  # in an encoder, the exporter lost the size of its features
    return outputs * inputs <= MOST * prod(area) * runs


def _by_tiles(op: Rewrite, x: "Value | None", weight: "Value | None", bias: "Value | None") -> "Value":
    """Write the convolution of x and return its output; where a side is odd, half a tile is cut off again."""
    many, channels = constant_of(weight).shape.numpy()[:2]
    size, deep = op("Shape", x, start=2), op("Unsqueeze", x, op.constant("/deep", [1]))  # (batch, 1, C, H, W)
    to_tiles = op.constant("/to_tiles", np.einsum("ri,sj->ijrs", B, B).reshape(16, 1, 1, 4, 4), np.float32)
    tiles = op("Conv", deep, to_tiles, strides=[1, 2, 2], pads=[0, 1, 1, 0, 2, 2])  # (batch, 16, C, h, w)
    shape = op("Concat", op.constant("/pixels", [0, 4, many]), op("Shape", tiles, start=3), axis=0)
    rows = op("Reshape", tiles, op.constant("/rows", [0, 16, channels, -1]))  # (batch, 16, C, h * w)
    kernel = op.computed(f".weight{TILES}", (16, many, channels), np.float32, lambda: tiles_of(numbers_of(weight)))
    summed = op("MatMul", kernel, rows)  # (batch, 16, K, h * w)
    flat = op("Reshape", summed, op.constant("/flat", [0, 16, -1]))
    to_pixels = op.constant("/to_pixels", np.einsum("ia,jb->abij", A, A).reshape(4, 16), np.float32)
    pixels = op("Reshape", op("MatMul", to_pixels, flat), shape)  # (batch, 4, K, h, w)
    whole = op.interleave([op("Gather", pixels, op.constant(f"/{i}", i), axis=1) for i in range(4)])
    cut = op("Slice", whole, op.constant("/begin", [0, 0]), size, op.constant("/sides", [2, 3]))
    return op("Add", cut, op("Reshape", bias, op.constant("/beside", [many, 1, 1])))
