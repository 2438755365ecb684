"""Bisection names the module that a fault was planted in, and the names that it goes by are in the file."""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import pytest
import torch
from torch import nn

from ldmrt.export.components.table import Component, components, example
from ldmrt.export.graph.naming import SCOPES, module_path, name_after_modules
from ldmrt.export.parity import bisect as module
from ldmrt.export.parity.bisect import EXTREME, Bisection, Row, bisect
from ldmrt.model import load
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.bundle.graphs import inside, path_of

from ...support.damage.graph_faults import BLOCK, FAULTS, NAMES, planted, weight

SIZES = {"batch": 2, "height": 16, "width": 24}
each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def parts(checkpoint: Path) -> dict[str, Component]:
    return components(load(checkpoint))


def run(component: Component, path: Path, **how: Any) -> Bisection:
    return bisect(component, path, example(component, SIZES), **how)


@pytest.mark.parametrize("name", list(FAULTS))
def test_names_the_module_of_a_planted_fault(
    name: str, bundle: Path, tmp_path: Path, parts: dict[str, Component]
) -> None:
    part, plant, where = FAULTS[name]
    found = run(parts[part], planted(bundle, tmp_path, part, plant))
    assert found.first is not None
    assert found.first.module == where
    assert found.first.difference > found.tolerance == 2e-5
    assert found.first in found.jumps
    assert len(found.jumps) == 10
    # what lies before does not depend on it
    assert all(row.difference < 1e-5 for row in found.rows[: found.rows.index(found.first)])
    assert found.first.node in str(found).splitlines()[2]


@each
def test_clean_component_has_none_past_tolerance(name: str, bundle: Path, parts: dict[str, Component]) -> None:
    folder = bundle / name
    files = {file.name: hashlib.sha256(file.read_bytes()).digest() for file in folder.iterdir()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in parts[name].module.modules()]
    found = run(parts[name], folder / "model.onnx")
    assert found.first is None
    assert not found.extremes
    # two libraries take sums in another order: no difference at all would be a thing compared with itself
    assert 0 < max(row.difference for row in found.rows) < 1e-5
    assert all(row.expected > 0 and row.found == pytest.approx(row.expected, rel=1e-5) for row in found.rows)
    assert len({row.node for row in found.rows}) == len(found.rows)
    assert {file.name: hashlib.sha256(file.read_bytes()).digest() for file in folder.iterdir()} == files
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in parts[name].module.modules()] == hooks


@each
def test_compares_every_module_that_has_weights(name: str, bundle: Path, parts: dict[str, Component]) -> None:
    compared = {row.module for row in run(parts[name], bundle / name / "model.onnx").rows}
    kinds = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
    paths = {module_path(path) for path, m in parts[name].module.named_modules() if isinstance(m, kinds)}
    assert len(paths) > 15
    # the tiny model's last norm has the weights of a layer's first, so that the exporter keeps one of them
    assert paths - compared <= (
        {"encoder.layers.1.layer_norm1", "final_layer_norm"} if name == "text_encoder" else set()
    )


@pytest.mark.parametrize("at_once", [3, None])
@pytest.mark.parametrize(
    ("name", "depth", "held"), [("text_encoder", 3, 8_000), ("unet", 1, 60_000), ("vae_decoder", 2, 60_000)]
)
def test_slices_and_everything_give_one_report(
    name: str, depth: int, held: int, at_once: int | None, bundle: Path, tmp_path: Path, parts: dict[str, Component],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = planted(bundle, tmp_path, name, next(fault for part, fault, _ in FAULTS.values() if part == name))
    whole, lengths, run_onnx = run(parts[name], path, depth=depth, at_once=10_000), [], module._onnx

    def counted(*given: Any) -> Any:
        lengths.append(len(given[-1]))
        return run_onnx(*given)

    monkeypatch.setattr(module, "_onnx", counted)
    monkeypatch.setattr(module, "HELD", held)
    parted = run(parts[name], path, depth=depth, at_once=at_once)
    assert sum(lengths) == len(whole.rows)
    assert len(lengths) > 2
    assert at_once is None or set(lengths[:-1]) == {at_once}
    assert [row.node for row in parted.rows] == [row.node for row in whole.rows]
    assert parted.first is not None
    assert whole.first is not None
    assert parted.first.node == whole.first.node
    for one, other in zip(parted.rows, whole.rows, strict=True):
        assert one.expected == other.expected
        # ONNX Runtime fuses over what is not looked at: sums in another order, as far apart as from PyTorch's
        assert one.difference == pytest.approx(other.difference, abs=5e-6)


@pytest.mark.parametrize(
    ("depth", "where"),
    [(1, "down_blocks.1.resnets.0"), (2, "down_blocks.1.resnets.0.norm2"), (None, "down_blocks.1.resnets.0.norm2")],
)
def test_depth(depth: int | None, where: str, bundle: Path, tmp_path: Path, parts: dict[str, Component]) -> None:
    found = run(parts["unet"], planted(bundle, tmp_path, "unet", FAULTS["epsilon, U-Net"][1]), depth=depth)
    assert found.first is not None
    assert found.first.module == where
    assert any("transformer_blocks" in row.module for row in found.rows) == (depth is None or depth > 1)
    assert found.rows[-1].module == "conv_out"


@pytest.mark.parametrize("value", [1e6, float("inf"), float("nan")])
def test_big_weight_is_reported(value: float, bundle: Path, tmp_path: Path, parts: dict[str, Component]) -> None:
    plant = weight("mid_block.resnets.0.conv1.weight", value)
    found = run(parts["unet"], planted(bundle, tmp_path, "unet", plant))
    assert found.first is not None
    assert found.first == found.extremes[0]
    assert found.first.module == "mid_block.resnets.0.conv1"
    assert found.first.expected < 100
    assert not found.first.found <= EXTREME
    assert np.isinf(found.first.difference) == (not np.isfinite(value))
    assert str(found).count(found.first.node) == 3  # as the first, the largest jump and among the extremes


def test_big_values_on_both_sides_are_reported(bundle: Path, tmp_path: Path, checkpoint: Path) -> None:
    component = components(load(checkpoint))["unet"]
    with torch.no_grad():
        component.module.get_parameter("model.mid_block.resnets.0.conv1.weight").view(-1)[0] = 1e6
    found = run(component, planted(bundle, tmp_path, "unet", weight("mid_block.resnets.0.conv1.weight", 1e6)))
    assert found.first is None
    assert {row.module for row in found.extremes} == {"mid_block.resnets.0.conv1", "mid_block.resnets.0"}


def test_extreme_is_above_half_of_the_largest_half() -> None:
    assert np.finfo(np.float16).max / 2 == EXTREME
    for number, extreme in ((EXTREME, False), (32753.0, True), (float("nan"), True), (float("inf"), True)):
        assert Row("m", "m/Conv", 0, 1, number, 1).extreme == Row("m", "m/Conv", 0, 1, 1, number).extreme == extreme


def test_what_is_off_on_the_way_alone_is_told_from_what_comes_out() -> None:
    """As timestep angles are, of which float32 has few digits, while the output holds."""
    early, late = (Row("m", "m/Sin", difference, 1.0, 1.0, 1.0) for difference in (1e-4, 1e-6))
    assert "first past 1e-05, but what it gives is within (1.0e-06):" in str(Bisection("unet", 1e-5, (early, late)))
    assert "first past 1e-05:" in str(Bisection("unet", 1e-5, (late, early)))
    assert "first past 1e-05: none" in str(Bisection("unet", 1e-5, (late, late)))


def test_tolerance_is_what_is_asked_for(bundle: Path, parts: dict[str, Component]) -> None:
    found = run(parts["unet"], bundle / "unet" / "model.onnx", tolerance=0.0)
    assert found.first is not None
    assert found.tolerance == 0


def test_jump_is_measured_against_what_a_tensor_was_computed_from(
    bundle: Path, tmp_path: Path, parts: dict[str, Component]
) -> None:
    rows = {
        row.node: row for row in run(parts["unet"], planted(bundle, tmp_path, "unet", FAULTS["epsilon, U-Net"][1])).rows
    }
    norm, conv = (f"down_blocks.1.resnets.0.{name}" for name in ("norm2/Add", "conv2/Conv"))
    before, between = rows["down_blocks.1.resnets.0/Add"], rows["down_blocks.1.resnets.0/Mul_1"]
    assert rows[norm].jump == pytest.approx(rows[norm].difference / before.difference)
    assert rows[conv].jump == pytest.approx(rows[conv].difference / between.difference)


def test_unnamed_nodes_are_refused(bundle: Path, tmp_path: Path, parts: dict[str, Component]) -> None:
    def plant(graph: Any) -> None:
        for i, found in enumerate(graph.node):
            found.name = f"node_{i}"

    with pytest.raises(
        LdmrtError, match=r"not named after the checkpoint's modules; expected time_embedding.linear_1, .*found node_0"
    ):
        run(parts["unet"], planted(bundle, tmp_path, "unet", plant))


def test_no_file_and_no_model_are_one_message(tmp_path: Path, parts: dict[str, Component]) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    for name in ("none.onnx", "bad.onnx"):
        with pytest.raises(LdmrtError, match=rf"unet: cannot read {re.escape(str(tmp_path / name))}"):
            run(parts["unet"], tmp_path / name)


@each
def test_nodes_and_values_are_named_after_modules(name: str, bundle: Path, parts: dict[str, Component]) -> None:
    graph = onnx.load(bundle / name / "model.onnx", load_external_data=False).graph
    paths = {module_path(path) for path, _ in parts[name].module.named_modules()}
    names = [found.name for found in graph.node]
    assert len(set(names)) == len(names)
    assert {path_of(found) for found in names} <= paths | {""}
    outputs = {value.name for value in graph.output}
    for found in graph.node:
        assert re.fullmatch(rf"(.+/)?{found.op_type}(_\d+)?", found.name)
        for value in found.output:
            several = len(found.output) > 1
            plain = {f"{found.name}.{i}" for i in range(len(found.output))} if several else {found.name}
            assert value in outputs or value in plain or (value in paths and inside(path_of(found.name), value))
        if found.op_type == "Conv":
            weight, bias = found.input[1:]
            assert re.fullmatch(rf"{re.escape(path_of(found.name))}\.weight(\.[01]{{2}})?", weight)
            assert bias == f"{path_of(found.name)}.bias"
    assert not [tensor.name for tensor in graph.initializer if tensor.name.startswith("module.")]


def test_a_modules_output_has_the_name_of_the_outermost(bundle: Path) -> None:
    graph = onnx.load(bundle / "unet" / "model.onnx", load_external_data=False).graph
    made = {value: found.name for found in graph.node for value in found.output}
    assert made["time_embedding"] == "time_embedding.linear_2/Gemm"
    assert made["down_blocks.0.resnets.0"] == "down_blocks.0.resnets.0/Add_1"
    assert made[f"{BLOCK}.attn1"] == f"{BLOCK}.attn1.to_out.0/Add"
    assert made["out_sample"] == "conv_out/Conv"
    assert not made.keys() & {f"{BLOCK}.attn1.to_out.0", "conv_out", "down_blocks.0"}


def test_names_of_a_graph_made_by_hand() -> None:
    """A module called as an input, a node that an optimiser put in, two outputs, modules within modules."""
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 23]> g (float[4] x) => (float[N] y) {
        a = Relu(x)  b = Exp(a)  c, d = Split<num_outputs = 2>(b)  e = Neg(c)  f = Abs(d)  h = Add(e, f)  s = Shape(h)
        u, v = Unique(h)  y = Expand(u, s) }""")
    two = ["", "module", "module.model", "module.model.two"]
    scopes: dict[str, list[str] | None] = {
        "Relu": ["", "module", "module.model", "module.model.x", "relu"],
        "Exp": [*two, "module.model.two.inner", "exp"],
        "Split": None,  # of which the users are in `two`
        "Neg": [*two, "neg"],
        "Abs": [*two, "module.model.two.inner2", "abs"],
        "Add": [*two, "module.model.two.sum", "add"],
        "Shape": [*two, "module.model.two.sum", "shape"],
        "Unique": ["", "module", "module.model", "module.model.cut", "unique"],
        "Expand": ["", "module", "expand"],
    }
    for found in model.graph.node:
        if (scope := scopes[found.op_type]) is not None:
            found.metadata_props.add(key=SCOPES, value=str(scope))
    made = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(model))
    name_after_modules(made)
    assert [(found.name, [value.name for value in found.outputs]) for found in made.graph] == [
        ("x/Relu", ["x/Relu"]),
        ("two.inner/Exp", ["two.inner"]),
        ("two/Split", ["two/Split.0", "two/Split.1"]),
        ("two/Neg", ["two/Neg"]),
        ("two.inner2/Abs", ["two.inner2"]),
        ("two.sum/Add", ["two"]),
        ("two.sum/Shape", ["two.sum/Shape"]),
        ("cut/Unique", ["cut/Unique.0", "cut/Unique.1"]),
        ("Expand", ["y"]),
    ]
