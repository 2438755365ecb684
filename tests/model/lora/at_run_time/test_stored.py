"""Where a graph holds the parameters of its network, against the checkpoint that it was exported from."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ldmrt.export.graph.cpu import upsample, winograd
from ldmrt.model import load
from ldmrt.runtime import BundleError
from ldmrt.runtime.files.lora.kernels import from_kernels, from_tiles, tiles_of
from ldmrt.runtime.pipeline.loras.graph_weights import GraphWeights
from ldmrt.runtime.pipeline.loras.stored import ALL, MATRICES, POINTWISE, stored_parameters
from ldmrt.runtime.tensors import Array

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_every_parameter_is_found(component: str, bundle: Path, checkpoint: Path) -> None:
    """But for position embeddings, which lose their module, and those that share a constant, having equal numbers."""
    stored = stored_parameters(GraphWeights.read(component, bundle / component / "model.onnx"))
    parameters = dict(load(checkpoint).networks[component].named_parameters())
    assert stored.keys() <= parameters.keys()
    values = [value.detach().numpy().tobytes() for value in parameters.values()]
    alone = {name for name, value in parameters.items() if values.count(value.detach().numpy().tobytes()) == 1}
    assert [name for name in alone - stored.keys() if "position_embedding" not in name] == []
    assert {name.rpartition(".")[2] for name in alone - stored.keys()} <= {"weight"}
    for name, each in stored.items():
        value = parameters[name].detach().numpy()
        # four kernels are sums, of which the weight is computed back
        np.testing.assert_allclose(each.value(), value, atol=2e-7 if len(each.constants) > 1 else 0)
    levels = {each.level for each in stored.values()}
    assert levels == ({MATRICES, POINTWISE, ALL} if component == "unet" else {MATRICES, POINTWISE, ALL} & levels)


def test_transforms_of_convolutions_are_undone() -> None:
    weight = RNG.standard_normal((5, 4, 3, 3), np.float32)
    (tiles,) = (kernel for _, kernel in winograd.kernels(weight))
    np.testing.assert_allclose(from_tiles(tiles), weight, atol=1e-6)  # float32, rounded when it was transformed
    four = [kernel for _, kernel in upsample.kernels(weight)]
    np.testing.assert_allclose(from_kernels(four), weight, atol=1e-6)


def graph_of(tmp_path: Path, **constants: Array) -> GraphWeights:
    """Write a graph that only holds constants, all but the first in a file beside it."""
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])]
    node = helper.make_node("Identity", ["x"], ["y"], name="a/Identity")
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])]
    model = helper.make_model(helper.make_graph([node], "g", inputs, outputs, tensors))
    onnx.save(
        model, tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=1000
    )
    return GraphWeights.read("unet", tmp_path / "model.onnx")


def test_tiles_change_as_the_weight_does(tmp_path: Path) -> None:
    weight = RNG.standard_normal((6, 5, 3, 3), np.float32)
    graph = graph_of(tmp_path, **{"a.bias": np.ones(6, np.float32), "conv.weight.tiles": tiles_of(weight)})
    stored = stored_parameters(graph)
    assert stored.keys() == {"a.bias", "conv.weight"}
    before = stored["conv.weight"].value()
    np.testing.assert_allclose(before, weight, atol=1e-6)
    delta = RNG.standard_normal((6, 5, 3, 3), np.float32)
    (found,) = stored["conv.weight"].changed(before, before + delta).values()
    np.testing.assert_allclose(found, tiles_of(weight + delta), atol=2e-6)
    (same,) = stored["conv.weight"].changed(before, before).values()
    np.testing.assert_array_equal(same, tiles_of(weight))


def test_constants_become_inputs(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, **{"a.bias": np.ones(6, np.float32), "b.weight": np.ones((20, 30), np.float16)})
    path = graph.path
    path.write_bytes(path.read_bytes() + graph.as_inputs(["b.weight", "a.bias"]))
    inputs = {one.name: one for one in onnx.load(path).graph.input}
    assert inputs.keys() == {"x", "a.bias", "b.weight"}
    kind = inputs["b.weight"].type.tensor_type
    assert (kind.elem_type, [dim.dim_value for dim in kind.shape.dim]) == (TensorProto.FLOAT16, [20, 30])
    onnx.checker.check_model(str(path))


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x3a\xff\xff\xff\xff\x0fno")
    with pytest.raises(BundleError, match="cannot load"):
        GraphWeights.read("unet", tmp_path / "model.onnx")
