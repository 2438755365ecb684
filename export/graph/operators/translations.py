"""Translate operators of PyTorch that torch's exporter writes slowly, or wrongly."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")  # the exporter's symbolic tensors, all of one dtype


def group_norm(x: T, groups: int, weight: T, bias: T, eps: float = 1e-5, cudnn: bool = True) -> T:
    """Translate `aten::group_norm`, whose signature this is (Wu & He 2018, arXiv:1803.08494, equation 7).

    It becomes an InstanceNormalization of its groups, which every backend has a kernel for. ONNX Runtime has none for
    GroupNormalization and computes it in eleven steps; TensorRT-RTX builds the same from both.

    Args:
        x: Features (batch, C, ...).
        groups: The number of groups that the C channels are divided into.
        weight: The scale of each channel, (C,).
        bias: The shift of each channel, (C,).
        eps: What is added to a group's variance.
        cudnn: A choice of PyTorch's own kernel, without a meaning here.

    Returns:
        The normalised features, of the shape of x.
    """
    from onnxscript import opset23

    op: Any = opset23  # its annotations refuse constants

    grouped = op.Reshape(x, op.Constant(value_ints=[0, groups, -1]))
    one, zero = (op.CastLike(op.Constant(value_floats=[value] * groups), x) for value in (1.0, 0.0))
    normal = op.Reshape(op.InstanceNormalization(grouped, one, zero, epsilon=eps), op.Shape(x))
    scale, shift = (op.Unsqueeze(per_channel, op.Constant(value_ints=[1, 2])) for per_channel in (weight, bias))
    result: T = op.Add(op.Mul(normal, scale), shift)
    return result


def floor_divide(number: T, divisor: T) -> T:
    """Translate `//` of whole numbers, which rounds down; ONNX's Div rounds toward zero, as torch's exporter has it.

    Sizes are not negative, but torch may write (24 - h) // 2 as 12 + (-h) // 2.
    """
    from onnxscript import opset23

    op: Any = opset23
    result: T = op.Div(op.Sub(number, op.Mod(number, divisor)), divisor)
    return result


def einsum(equation: str, tensors: Sequence[T], path: Sequence[int] | None = None) -> T:
    """Translate `aten::einsum`, whose signature this is: a turn of axes becomes a Transpose.

    ONNX has no Einsum of bfloat16, and the transformers of diffusers turn the axes of patches by one.

    Args:
        equation: The axes of what is taken and of what is given, such as "nhwpqc->nchpwq".
        tensors: What is taken.
        path: An order of contractions, without a meaning for one tensor.

    Returns:
        What is given.
    """
    from onnxscript import opset23

    op: Any = opset23
    taken, arrow, given = equation.replace(" ", "").partition("->")
    turned = arrow and len(tensors) == 1 and sorted(taken) == sorted(given) == sorted(set(taken))
    result: T = (
        op.Transpose(*tensors, perm=[taken.index(axis) for axis in given])
        if turned
        else op.Einsum(*tensors, equation=equation)
    )
    return result


TRANSLATIONS: dict[Callable[..., object], Callable[..., object]] = {
    torch.ops.aten.group_norm.default: group_norm,
    torch.ops.aten.einsum.default: einsum,
    operator.floordiv: floor_divide,
}
