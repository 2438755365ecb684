"""What TensorRT-RTX cannot build for a GPU is refused before it is tried; and it really cannot."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ldmrt.export.engines import compiler
from ldmrt.export.engines.arithmetic import check_arithmetic
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.bundle.engines.engine_key import Range, Recipe

DTYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
NODES: dict[str, tuple[list[list[int]], dict[str, Any]]] = {
    "MatMul": ([[4, 8], [8, 8]], {}),
    "Gemm": ([[4, 8], [8, 8], [8]], {}),
    "Einsum": ([[4, 8], [8, 8]], {"equation": "ij,jk->ik"}),
    "Conv": ([[1, 8, 4, 4], [8, 8, 3, 3]], {"pads": [1, 1, 1, 1]}),
    "Softmax": ([[4, 8]], {}),
    "Add": ([[4, 8], [4, 8]], {}),
    "GroupNormalization": ([[1, 8, 4, 4], [8], [8]], {"num_groups": 2}),
}
TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121", "portable")
CANNOT = {("sm75", "bf16", node) for node in NODES} | {("sm75", "fp32", node) for node in ("MatMul", "Gemm", "Einsum")}


class OneGraph:
    """As much of a bundle as the check looks at."""

    def __init__(self, path: Path) -> None:
        self.path = path.parent
        self._file = path

    def model(self, graph: str) -> Path:
        return self._file


def graph(folder: Path, node: str, precision: str) -> Path:
    """One node: its first input is the graph's, the others are weights."""
    shapes, attributes = NODES[node]
    dtype = DTYPES[precision]
    weights = [
        helper.make_tensor(f"w{i}", dtype, shape, np.full(shape, 0.5, np.float32).ravel().tolist())
        for i, shape in enumerate(shapes[1:])
    ]
    made = helper.make_graph(
        [helper.make_node(node, ["x", *(one.name for one in weights)], ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", dtype, shapes[0])],
        [helper.make_tensor_value_info("y", dtype, None)],
        weights,
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def recipe(node: str, precision: str, target: str) -> Recipe:
    shape = tuple(NODES[node][0][0])
    profile = ({"x": Range(shape, shape, shape)},)
    return Recipe("unet", "", "", precision, "tensorrt-rtx", "1.7", target, profile)


def refused(path: Path, made: Recipe) -> str:
    """Why; empty where it is not."""
    bundle: Any = OneGraph(path)
    try:
        check_arithmetic(bundle, [made])
    except LdmrtError as error:
        return str(error)
    return ""


def built(path: Path, made: Recipe) -> bool:
    try:
        compiler.compile_engine(path, made, lambda phase, done: True)
    except LdmrtError:
        return False
    return True


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("node", NODES)
def test_what_is_refused(tmp_path: Path, node: str, precision: str) -> None:
    path = graph(tmp_path, node, precision)
    found = {target: why for target in TARGETS if (why := refused(path, recipe(node, precision, target)))}
    assert set(found) == {target for target in TARGETS if (target, precision, node) in CANNOT}
    for target, why in found.items():
        assert why.startswith(f"unet: TensorRT-RTX cannot build it for {target}, which has no ")
        assert f"another --target than {target}" in why
        assert ("--precision fp16" in why) == (precision != "fp16")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")  # of Polygraphy
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("node", NODES)
def test_it_is_what_cannot_be_built(tmp_path: Path, node: str, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'ldmrt[rtx]'")
    path = graph(tmp_path, node, precision)
    failed = {target for target in TARGETS if not built(path, recipe(node, precision, target))}
    assert failed == {target for target in TARGETS if (target, precision, node) in CANNOT}
