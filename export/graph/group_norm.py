"""GroupNorm as an InstanceNormalization of its groups: the form that every backend has a kernel for.

ONNX Runtime has none for GroupNormalization and computes it in eleven steps; TensorRT-RTX builds the same from
both.
"""

from typing import Any

import torch


def group_norm(x: Any, groups: int, weight: Any, bias: Any, eps: float = 1e-5, cudnn: bool = True) -> Any:
    """Wu & He 2018, arXiv:1803.08494, equation 7; the signature is `aten::group_norm`'s."""
    from onnxscript import opset23

    op: Any = opset23  # its annotations refuse constants

    grouped = op.Reshape(x, op.Constant(value_ints=[0, groups, -1]))
    one, zero = (op.CastLike(op.Constant(value_floats=[value] * groups), x) for value in (1.0, 0.0))
    normal = op.Reshape(op.InstanceNormalization(grouped, one, zero, epsilon=eps), op.Shape(x))
    scale, shift = (op.Unsqueeze(one_each, op.Constant(value_ints=[1, 2])) for one_each in (weight, bias))
    return op.Add(op.Mul(normal, scale), shift)


TRANSLATIONS: dict[Any, Any] = {torch.ops.aten.group_norm.default: group_norm}
