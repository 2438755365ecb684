"""A 3x3 convolution by Winograd's tiles: beside the convolution, in float64 beside its definition, and in what fits."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass
from openvino import Core
from torch import nn
from torch.nn import functional

from ldmrt.export.engines.activations import activations
from ldmrt.export.graph.cpu.winograd import A, B, convolve_by_tiles, kernels
from ldmrt.export.parity.origin import other_graph
from ldmrt.runtime.backends.openvino.convolutions import restore_convolutions, weight_of
from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.files.lora.kernels import TILES

CHANNELS = 320
# Of the largest value, both against float64: the convolution rounds 3e-7 of it here, and tiles twice as much.
ROUNDING = 1e-6


def numbers(*shape: int) -> NDArray:
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


def graph(
    path: Path,
    made: int = CHANNELS,
    given: int = CHANNELS,
    side: int = 3,
    bias: bool = True,
    area: str = "whole",
    runs: int = 1,
    **how: Any,
) -> Path:
    """What convolves x, (batch, given, h, w), after it was rewritten."""
    constants = {"home.weight": numbers(made, given, side, side), "home.bias": numbers(made)}
    names = list(constants) if bias else ["home.weight"]
    node = helper.make_node("Conv", ["x", *names], ["y"], name="home/Conv", **{"pads": [1] * 4} | how)
    sides = {"whole": ["h", "w"], "half": ["h//2", "w//2"], "unknown": ["s0", "s1"]}[area]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", many, *sides])
        for name, many in (("x", given * how.get("group", 1)), ("y", made))
    ]
    weights = [numpy_helper.from_array(constants[name], name) for name in names]
    proto = helper.make_graph([node], "test", ends[:1], ends[1:], weights)
    model = onnx_ir.from_proto(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 23)], ir_version=11))
    convolve_by_tiles(model, runs)
    RemoveUnusedNodesPass()(model)
    onnx_ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    return path


def constants(path: Path) -> list[str]:
    return [one.name for one in onnx.load(path).graph.initializer]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graph(tmp_path_factory.mktemp("winograd") / "graph.onnx", made=384)


@pytest.mark.parametrize("frugal", [False, True])
@pytest.mark.parametrize("sides", [(1, 1), (1, 4), (5, 3), (8, 8), (9, 6)])
def test_is_the_convolution(sides: tuple[int, int], frugal: bool, made: Path) -> None:
    x, weight, bias = numbers(2, CHANNELS, *sides), numbers(384, CHANNELS, 3, 3), numbers(384)
    exact = functional.conv2d(*(torch.tensor(one).double() for one in (x, weight, bias)), padding=1).numpy()
    found = OrtEngine("test", made, frugal=frugal)(x=x)["y"]
    assert found.shape == exact.shape
    assert np.abs(found - exact).max() <= ROUNDING * np.abs(exact).max()


def test_tiles_are_the_definition() -> None:
    """A pixel is the sum of what nine others are times nine numbers, in integers."""
    generator = np.random.default_rng(0)
    d, w = generator.integers(-9, 10, (4, 4)), generator.integers(-9, 10, (3, 3)) * 4  # which halves twice
    ((_, tiles),) = kernels(w.reshape(1, 1, 3, 3))
    found = A.T @ (tiles.reshape(4, 4) * (B.T @ d @ B)) @ A
    assert found.tolist() == [[(d[a : a + 3, b : b + 3] * w).sum() for b in (0, 1)] for a in (0, 1)]


@pytest.mark.parametrize("sides", [(1, 4), (9, 6)])
def test_openvino_writes_the_convolution_back(sides: tuple[int, int], made: Path) -> None:
    graph = Core().read_model(made)
    assert restore_convolutions(graph) == 1
    (conv,) = (node for node in graph.get_ops() if node.get_type_name() == "Convolution")
    assert list(conv.input_value(1).get_shape()) == [384, CHANNELS, 3, 3]
    x, weight, bias = numbers(2, CHANNELS, *sides), numbers(384, CHANNELS, 3, 3), numbers(384)
    exact = functional.conv2d(*(torch.tensor(one).double() for one in (x, weight, bias)), padding=1).numpy()
    found = Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0]
    # the weight comes from tiles that were rounded, which doubles what the convolution rounds: 2.1e-6 in all
    assert np.abs(found - exact).max() <= 4 * ROUNDING * np.abs(exact).max()


def test_openvino_leaves_other_convolutions(tmp_path: Path) -> None:
    assert restore_convolutions(Core().read_model(graph(tmp_path / "graph.onnx", made=16))) == 0


def test_the_weight_of_tiles() -> None:
    weight = numbers(3, 5, 3, 3)
    ((_, tiles),) = kernels(weight)
    assert np.abs(weight_of(tiles) - weight).max() <= 1e-6 * np.abs(weight).max()  # the tiles are rounded once


def test_the_weight_is_replaced(made: Path) -> None:
    names = constants(made)
    assert f"home.weight{TILES}" in names
    assert "home.bias" in names
    assert "home.weight" not in names


def test_its_origin_is_known(made: Path) -> None:
    weights = {"weight": torch.tensor(numbers(384, CHANNELS, 3, 3)), "bias": torch.tensor(numbers(384))}
    network = nn.ModuleDict({"home": nn.Conv2d(CHANNELS, 384, 3)})
    network["home"].load_state_dict(weights)
    component: Any = SimpleNamespace(name="test", module=network)
    assert list(other_graph(component, made)) == []
    with torch.no_grad():
        network["home"].weight[7, 5, 1, 1] += 1e-6
    assert list(other_graph(component, made)) == ["test: home.weight differs from the checkpoint's"]


@pytest.mark.parametrize(
    "other",
    [
        {"made": 128},
        {"given": 128},
        {"made": 832},
        {"side": 1, "pads": [0] * 4},
        {"pads": [0] * 4},
        {"pads": [1, 1, 2, 2]},
        {"strides": [2, 2]},
        {"dilations": [2, 2]},
        {"given": 160, "group": 2},
        {"auto_pad": "SAME_UPPER"},
        {"bias": False},
        {"area": "half"},
        {"area": "unknown", "runs": 9},
        {"area": "half", "made": 640, "given": 1280, "runs": 10},
    ],
)
def test_what_does_not_fit_stays(other: dict[str, Any], tmp_path: Path) -> None:
    if "auto_pad" in other:
        other["pads"] = None
    assert "home.weight" in constants(graph(tmp_path / "graph.onnx", **other))


@pytest.mark.parametrize(
    "other",
    [
        {"made": 768},
        {"made": 832, "runs": 2},
        {"area": "half", "runs": 2},
        {"area": "half", "made": 640, "given": 960, "runs": 10},
    ],
)
def test_the_more_it_sees_the_larger_it_may_be(other: dict[str, Any], tmp_path: Path) -> None:
    assert f"home.weight{TILES}" in constants(graph(tmp_path / "graph.onnx", **other))


def test_its_memory_is_known(made: Path) -> None:
    """Tiles of 16 numbers, two apart: of what is given, and of what is made."""
    live = activations(onnx.load(made), {"x": (1, CHANNELS, 8, 8)}).live
    assert live == (CHANNELS + 384) * 16 * (4 * 4) * 4
