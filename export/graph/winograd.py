"""A 3x3 convolution by Winograd's F(2x2, 3x3), 4/9 of the multiplications (Lavin and Gray 2015, arXiv:1509.09308):

y = A.T @ ((G @ w @ G.T) * (B.T @ d @ B)) @ A       of each 4x4 pixels d, two apart, the 2x2 in their middle

The products, summed over the channels, are 16 of matrices. All numbers of G, B and A are 0, 1, -1 or a half: what is
rounded is about twice what the convolution rounds. Weights take 16/9 of the memory.

Of float32 alone, as `upsample`: in a narrower type G would round the weights, and GPUs have kernels of their own.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .rewrite import Rewrite

B = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]).T
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
A = np.array([[1, 1, 1, 0], [0, 1, -1, -1]]).T
TILES = ".tiles"  # what the name of a weight ends in that was made of one
# Channels, of what is given and of what is made: with fewer, moving numbers takes what multiplying saves.
FEWEST = 320
# Pairs of such channels for each pixel that they meet in drawing an image: with more, tiles save too little for the
# memory that their weights take.
MOST = 250
SIZE = {"batch": 1, "h": 32, "w": 32}  # of that image, in latents
PLAIN = {"auto_pad": "NOTSET", "group": 1, "strides": (1, 1), "dilations": (1, 1)}


def kernels(weight: NDArray) -> Iterator[tuple[str, NDArray]]:
    """Make of a weight, (K, C, 3, 3), the one of (16, K, C), with what its name ends in."""
    made = np.kron(G, G) @ weight.reshape(-1, 9).T.astype(np.float64)
    yield TILES, made.reshape(16, *weight.shape[:2]).astype(weight.dtype)


def convolve_by_tiles(model: Any, runs: int) -> None:
    """Rewrite convolutions in a graph of onnx_ir with named nodes, which `runs` so often for an image; what nobody
    needs then stays.
    """
    for conv in [node for node in model.graph if node.op_type == "Conv"]:
        if _fits(conv, runs):
            op = Rewrite(model.graph, conv)
            op.finish(_by_tiles(op, *conv.inputs))


def _fits(conv: Any, runs: int) -> bool:
    """3x3 with a bias, as many pixels as there were, and channels that pay."""
    held = [value.const_value for value in conv.inputs[1:] if value is not None]
    how = PLAIN | {name: one.value for name, one in conv.attributes.items() if name != "kernel_shape"}
    if len(held) != 2 or None in held or how != PLAIN | {"pads": (1, 1, 1, 1)}:
        return False
    made, given, *sides = held[0].shape
    area = conv.outputs[0].shape.evaluate(SIZE)[2:]
    if sides != [3, 3] or min(made, given) < FEWEST or not all(isinstance(side, int) for side in area):
        return False  # of an encoder, the exporter lost how large its features are
    return made * given <= MOST * prod(area) * runs


def _by_tiles(op: Rewrite, x: Any, weight: Any, bias: Any) -> Any:
    """What the convolution gives. Of tiles at an odd side, half is cut away again."""
    many, channels = weight.shape[:2]
    ((end, kernel),) = kernels(weight.const_value.numpy())
    size, deep = op("Shape", x, start=2), op("Unsqueeze", x, op.constant("/deep", [1]))  # (batch, 1, C, H, W)
    to_tiles = op.constant("/to_tiles", np.einsum("ri,sj->ijrs", B, B).reshape(16, 1, 1, 4, 4), np.float32)
    tiles = op("Conv", deep, to_tiles, strides=[1, 2, 2], pads=[0, 1, 1, 0, 2, 2])  # (batch, 16, C, h, w)
    shape = op("Concat", op.constant("/pixels", [0, 4, many]), op("Shape", tiles, start=3), axis=0)
    rows = op("Reshape", tiles, op.constant("/rows", [0, 16, channels, -1]))  # (batch, 16, C, h * w)
    summed = op("MatMul", op.constant(f".weight{end}", kernel, np.float32), rows)  # (batch, 16, K, h * w)
    flat = op("Reshape", summed, op.constant("/flat", [0, 16, -1]))
    to_pixels = op.constant("/to_pixels", np.einsum("ia,jb->abij", A, A).reshape(4, 16), np.float32)
    pixels = op("Reshape", op("MatMul", to_pixels, flat), shape)  # (batch, 4, K, h, w)
    whole = op.interleave([op("Gather", pixels, op.constant(f"/{i}", i), axis=1) for i in range(4)])
    cut = op("Slice", whole, op.constant("/begin", [0, 0]), size, op.constant("/sides", [2, 3]))
    return op("Add", cut, op("Reshape", bias, op.constant("/beside", [many, 1, 1])))
