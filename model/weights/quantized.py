"""Convert weights stored in float8 or float64, which no network computes in, and apply the scales of float8."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import parse_json

from .lazy import Lazy

# The narrowest dtype that networks compute in and that holds every value of one that they do not.
COMPUTED: dict[torch.dtype | None, torch.dtype] = {
    torch.float8_e4m3fn: torch.float16,
    torch.float8_e5m2: torch.float16,
    torch.float8_e4m3fnuz: torch.float16,
    torch.float8_e5m2fnuz: torch.float16,
    torch.float64: torch.float32,
}
# How a scale is named: after a module (ComfyUI until 2025) or after the weight (ComfyUI since, torchao, DeepSeek).
SCALES = ((".scale_weight", ".weight"), ("_scale", ""), ("_scale_inv", ""))
# Scales of activations, and marks of the format: they say how to multiply in float8, which is not done here.
MARKS = re.compile(r"(.*\.)?(scaled_fp8|scale_input|input_scale|comfy_quant)")
FORMATS = ("float8_e4m3fn", "float8_e5m2")


def computed_dtype(tensor: Lazy) -> torch.dtype | None:
    """Return the dtype that networks compute in for a weight that stays as it is stored."""
    return COMPUTED.get(tensor.dtype, tensor.dtype)


def unscaled(component: str, tensors: Mapping[str, Lazy], path: Path) -> dict[str, Lazy]:
    """Multiply weights of float8 by the scales that a file holds beside them, when they are read."""
    narrow = {key for key, tensor in tensors.items() if tensor.dtype is not None and tensor.dtype.itemsize == 1}
    if not narrow:
        return dict(tensors)
    scales = {
        key.removesuffix(scale) + weight: key
        for key in tensors
        for scale, weight in SCALES
        if key.endswith(scale) and key.removesuffix(scale) + weight in narrow
    }
    marks = {key for key in tensors if MARKS.fullmatch(key)}
    for key in marks:
        if key.endswith("comfy_quant"):
            _check_format(component, key, tensors[key], path)
    beside = {*scales.values(), *marks}
    return {
        key: _times(component, key, tensor, tensors[scales[key]], path) if key in scales else tensor
        for key, tensor in tensors.items()
        if key not in beside
    }


def _check_format(component: str, key: str, mark: Lazy, path: Path) -> None:
    """Refuse weights that ComfyUI packed in another way than as float8."""
    name = parse_json(component, f"{key} in {path}", bytes(mark.view().flatten().tolist())).get("format")
    if name not in FORMATS:
        problem = f"unsupported format of the weight of {key} in {path}"
        raise LdmrtError(component, problem, expected=" or ".join(FORMATS), found=repr(name))


def _times(component: str, key: str, weight: Lazy, scale: Lazy, path: Path) -> Lazy:
    """Describe the product of a weight and its scale, which is one number, or one for each row or block."""
    shape = scale.shape
    while len(shape) > len(weight.shape) and shape[-1] == 1:
        shape = shape[:-1]
    shape += (1,) * (len(weight.shape) - len(shape))
    fits = len(shape) == len(weight.shape) and all(
        blocks and size % blocks == 0 for size, blocks in zip(weight.shape, shape, strict=True)
    )
    if weight.dtype is None or scale.dtype is None or not fits:
        problem, expected = f"unsupported scale of {key} in {path}", "floats, one a weight, row or block"
        raise LdmrtError(component, problem, expected=expected, found=f"shape {scale.shape} for {weight.shape}")

    def view() -> Tensor:
        factor = scale.view().float().reshape(shape)
        for dim, (size, blocks) in enumerate(zip(weight.shape, shape, strict=True)):
            factor = factor.repeat_interleave(size // blocks, dim) if 1 < blocks < size else factor
        return weight.view().float().mul_(factor)  # in place, of a copy

    return replace(weight, dtype=torch.float32, view=view)
