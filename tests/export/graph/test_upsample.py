"""A convolution of what was doubled, as four of what was there: beside the two, and in what is exported."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ldmrt.export.components.table import Component, components
from ldmrt.export.graph.cpu.upsample import FIRST, convolve_before_upsampling, kernels
from ldmrt.model import load
from ldmrt.model.networks.blocks import Upsample
from ldmrt.runtime.backends.ort.engine import OrtEngine

ROUNDING = 2e-6  # of the largest value: sums of 54 products each, in another order
WEIGHT = "home.weight"


def numbers(*shape: int) -> NDArray:
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


def graph(path: Path, scales: list[float], *, bias: bool = True, **resize: str) -> Path:
    """What resizes (batch, 6, h, w) and convolves it, after it was rewritten."""
    constants = {"scales": np.float32(scales), WEIGHT: numbers(6, 6, 3, 3), "home.bias": numbers(6)}
    how = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"} | resize
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["larger"], **how),
        helper.make_node("Conv", ["larger", WEIGHT, "home.bias"][: 2 + bias], ["y"], name="home/Conv", pads=[1] * 4),
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 6, "h", "w"]) for name in "xy"]
    ends[1] = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 6, "hh", "ww"])
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "test", ends[:1], ends[1:], weights)
    model = onnx_ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=11))
    convolve_before_upsampling(model)
    RemoveUnusedNodesPass()(model)
    onnx_ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    return path


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (2, 6, 1, 4), (1, 6, 5, 3), (3, 6, 8, 8)])
def test_is_what_the_two_are(shape: tuple[int, ...], bias: bool, tmp_path: Path) -> None:
    made = graph(tmp_path / "graph.onnx", [1, 1, 2, 2], bias=bias)
    assert "Resize" not in operators(made)
    slow, x = Upsample(6), numbers(*shape)
    slow.conv.weight.data, slow.conv.bias.data = torch.tensor(numbers(6, 6, 3, 3)), bias * torch.tensor(numbers(6))
    with torch.no_grad():
        expected = slow(torch.tensor(x)).numpy()
    found = OrtEngine("test", made)(x=x)["y"]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= ROUNDING * np.abs(expected).max()


@pytest.mark.parametrize(
    ("scales", "how"),
    [
        ([1, 1, 3, 3], {}),
        ([1, 1, 2, 1], {}),
        ([1, 1, 2, 2], {"mode": "linear"}),
        ([1, 1, 2, 2], {"nearest_mode": "ceil"}),
        ([1, 1, 2, 2], {"coordinate_transformation_mode": "align_corners"}),
    ],
)
def test_what_copies_otherwise_stays(scales: list[float], how: dict[str, str], tmp_path: Path) -> None:
    assert operators(graph(tmp_path / "graph.onnx", scales, **how)) == ["Resize", "Conv"]


def test_kernels_of_ones_count_the_pixels_that_are_copies() -> None:
    found = dict(kernels(np.ones((1, 1, 3, 3), np.float32)))
    assert found[FIRST][0, 0].tolist() == [[1, 2], [2, 4]]
    assert found[".11"][0, 0].tolist() == [[4, 2], [2, 1]]
    assert found[".01"][0, 0].tolist() == [[2, 1], [4, 2]]


def test_decoders_of_float32_alone(
    checkpoint: Path, bundle: Path, tmp_path: Path, export_once: Callable[[Component, Path], Path]
) -> None:
    """A U-Net's sizes may be odd, and sums of halves would be rounded."""
    assert "Resize" not in operators(bundle / "vae_decoder" / "model.onnx")
    assert "Resize" in operators(bundle / "unet" / "model.onnx")
    half = components(load(checkpoint, dtype=torch.float16))["vae_decoder"]
    assert "Resize" in operators(export_once(half, tmp_path / "half"))
