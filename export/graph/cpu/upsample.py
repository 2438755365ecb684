"""Nearest-neighbour upsampling and the 3x3 convolution after it, as four 2x2 convolutions of the small image.

That takes 4/9 of the multiplications (after Shi et al. 2016, arXiv:1609.07009, where a convolution in the small image
replaces one between its pixels). Those pixels under a kernel w that are copies of one pixel share a tap, the sum of
theirs:

y[2i + a, 2j + b] = sum_pq k[p, q] * x[i + p + a - 1, j + q + b - 1]        k = TAPS[a] @ w @ TAPS[b].T

Only float32 graphs are rewritten: in a narrower type the sums would be rounded once more, and GPUs, which compute in
that, would need a quarter more memory.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from ldmrt.export.graph.rewrite import Rewrite, constant_of, numbers_of
from ldmrt.runtime.files.lora.kernels import PLACES, ending, kernel_at
from ldmrt.runtime.tensors import Array

if TYPE_CHECKING:
    from onnx_ir import Model, Node, Value

PADS = [[1 - a, 1 - b, a, b] for a, b in PLACES]
FIRST = ".00"  # how the name of the first of four kernels ends


def kernels(weight: Array) -> Iterator[tuple[str, Array]]:
    """Compute the four kernels that replace one.

    Args:
        weight: (K, C, 3, 3), of any floating-point dtype.

    Yields:
        How the kernel's name ends, and the kernel, (K, C, 2, 2), summed in float64 and of the weight's dtype.
    """
    for place in PLACES:
        yield ending(place), kernel_at(weight, place)


def _kernel_of(weight: "Value | None", place: tuple[int, int]) -> Array:
    """Compute a kernel of a constant of a graph."""
    return kernel_at(numbers_of(weight), place)


def convolve_before_upsampling(model: "Model") -> None:
    """Rewrite every convolution of an image that was doubled just before, in a graph whose nodes are named.

    Nodes that are dead then stay in the graph; the caller removes them.
    """
    for conv in [node for node in model.graph if node.op_type == "Conv"]:
        x, weight, *rest = conv.inputs
        resize = None if x is None else x.producer()
        if resize is not None and resize.op_type == "Resize" and _doubles(resize):
            op, bias = Rewrite(model.graph, conv), rest[0] if rest else None
            kind = constant_of(weight)
            shape = (*kind.shape.numpy()[:2], 2, 2)
            four = []
            for pads, place in zip(PADS, PLACES, strict=True):
                compute = partial(_kernel_of, weight, place)
                kernel = op.computed(f".weight{ending(place)}", shape, kind.dtype.numpy(), compute)
                four.append(op("Conv", resize.inputs[0], kernel, bias, pads=pads))
            op.finish(op.interleave(four))


def _doubles(resize: "Node") -> bool:
    """Return whether a Resize doubles both sides of an image, each pixel to two by two copies."""
    values = resize.inputs
    scales = values[2].const_value if len(values) == 3 and values[2] is not None else None
    how = [resize.attributes[name].as_string() for name in ("mode", "coordinate_transformation_mode", "nearest_mode")]
    copies = how == ["nearest", "asymmetric", "floor"]
    return copies and scales is not None and scales.numpy().tolist() == [1, 1, 2, 2]
