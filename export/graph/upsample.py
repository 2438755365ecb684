"""Nearest neighbour and a 3x3 convolution of what it made, as four 2x2 convolutions of what was there: 4/9 of the
multiplications (after Shi et al. 2016, arXiv:1609.07009, who find a convolution that does what one in between does).

Of the pixels that a kernel w sees, those that are copies of one share a tap, the sum of theirs:

y[2i + a, 2j + b] = sum_pq k[p, q] * x[i + p + a - 1, j + q + b - 1]        k = TAPS[a] @ w @ TAPS[b].T

Of float32 alone: in a narrower type the sums would be rounded once more, and GPUs, which compute in that, would hold a
quarter more at once.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .rewrite import Rewrite

TAPS = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float64)
PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))  # (a, b)
PADS = [[1 - a, 1 - b, a, b] for a, b in PLACES]
FIRST = ".00"  # what the name of the first ends in


def kernels(weight: NDArray) -> Iterator[tuple[str, NDArray]]:
    """Make of a weight, (K, C, 3, 3), the four of (K, C, 2, 2), each with what its name ends in."""
    for a, b in PLACES:
        yield f".{a}{b}", (TAPS[a] @ weight.astype(np.float64) @ TAPS[b].T).astype(weight.dtype)


def convolve_before_upsampling(model: Any) -> None:
    """Rewrite what doubles and then convolves, in a graph of onnx_ir with named nodes; what nobody needs then stays."""
    for conv in [node for node in model.graph if node.op_type == "Conv"]:
        resize = conv.inputs[0].producer()
        if resize is not None and resize.op_type == "Resize" and _doubles(resize):
            op, (_, weight, bias) = Rewrite(model.graph, conv), conv.inputs
            four = [
                op("Conv", resize.inputs[0], op.constant(f".weight{end}", kernel, kernel.dtype), bias, pads=pads)
                for pads, (end, kernel) in zip(PADS, kernels(weight.const_value.numpy()), strict=True)
            ]
            op.finish(op.interleave(four))


def _doubles(resize: Any) -> bool:
    """Both sides, each pixel to two by two copies."""
    scales = resize.inputs[2].const_value if len(resize.inputs) == 3 and resize.inputs[2] is not None else None
    how = [resize.attributes[name].as_string() for name in ("mode", "coordinate_transformation_mode", "nearest_mode")]
    copies = how == ["nearest", "asymmetric", "floor"]
    return copies and scales is not None and scales.numpy().tolist() == [1, 1, 2, 2]
