"""OpenVINO in int8: which modules compute in it, what they compute, and the ranges that a bundle keeps for it."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import Bundle, BundleError
from ldmrt.runtime.backends import registry
from ldmrt.runtime.backends.openvino.convolutions import restore_convolutions
from ldmrt.runtime.backends.openvino.devices import beside_int8, core
from ldmrt.runtime.backends.openvino.engine import OpenVinoEngine
from ldmrt.runtime.backends.openvino.int8 import between, compute_in_int8, rounded, steps, weight_of
from ldmrt.runtime.backends.openvino.islands import modules_of
from ldmrt.runtime.backends.openvino.library import openvino
from ldmrt.runtime.backends.openvino.network import read_graph
from ldmrt.runtime.backends.openvino.ranges import (
    FILE,
    Ranges,
    network_files,
    read_ranges,
    stored_in,
    to_bytes,
    with_ranges,
)
from ldmrt.runtime.backends.registry import BackendSettings, open_engines
from ldmrt.runtime.bundle.manifest import MANIFEST
from ldmrt.runtime.tensors import Array

from .test_openvino import feeds

LOW, HIGH = -64 * 0.03125, 191 * 0.03125  # 256 levels, 1/32 apart
# Integers are summed exactly and scaled in float32; the twin is float64. 2e-7 at most was measured.
ROUNDING = 2e-6


def plain(graph: Any) -> Any:
    """Compile a graph for float32, so that only int8 rounds."""
    return core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def levels(shape: tuple[int, ...]) -> Array:
    """Values of which each lies 0.3 of a step from a level, so that no rounding of float32 moves one to another."""
    whole = np.random.default_rng(1).integers(-90, 220, shape)  # some lie beyond the ends
    return ((whole + 0.3) * 0.03125).astype(np.float32)


def fake_quantised(x: Array) -> Array:
    """The slow twin: an activation on its 256 levels, and nothing beyond its ends."""
    return np.clip(np.rint(x.astype(np.float64) / 0.03125), -64, 191) * 0.03125


def one_operator(kind: str, weight: Array) -> tuple[Any, Array, Array]:
    """A graph of one operator, an input for it, and the axes to sum over as a matrix: (graph, x, expected)."""
    ops = openvino("test").opset13
    whole, scales = rounded(weight, -1 if kind == "linear (C, K)" else 0, steps())
    w = whole.astype(np.float64) * scales
    x = levels((2, 5, 6, 7) if kind == "convolution" else (2, 9, 5))
    value, given = ops.parameter(x.shape, np.float32, name="x"), ops.constant(weight)
    if kind == "convolution":
        node = ops.convolution(value, given, [1, 1], [1, 1], [1, 1], [1, 1])
        padded = np.pad(fake_quantised(x), [(0, 0), (0, 0), (1, 1), (1, 1)])
        patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        expected = np.einsum("bchwij,kcij->bkhw", patches, w)
    else:
        transposed = kind == "linear (K, C)"
        node = ops.matmul(value, given, False, transposed)
        expected = fake_quantised(x) @ (w.T if transposed else w)
    node.set_friendly_name("block.conv/Conv")
    return openvino("test").Model([ops.result(node)], [value], "one"), x, expected


@pytest.mark.parametrize(
    ("kind", "shape"), [("convolution", (4, 5, 3, 3)), ("linear (K, C)", (8, 5)), ("linear (C, K)", (5, 8))]
)
def test_an_operator_computes_what_rounding_by_numpy_does(kind: str, shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    graph, x, expected = one_operator(kind, weight)
    assert compute_in_int8(graph, {"block.conv": (LOW, HIGH), "elsewhere": (0.0, 1.0)}) == 1
    found = plain(graph)([x])[0]
    assert np.abs(found - expected).max() <= ROUNDING * np.abs(expected).max()
    exact = plain(one_operator(kind, weight)[0])([x])[0]
    assert np.abs(found - exact).max() > 1000 * ROUNDING * np.abs(exact).max()  # it did round


def test_a_weight_is_rounded_by_half_a_step_of_its_channel_at_most() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32) * [
        [[[1]]],
        [[[10]]],
        [[[0]]],
        [[[1e-3]]],
    ]
    whole, scales = rounded(weight, 0)
    assert (whole.dtype, scales.shape) == (np.int8, (4, 1, 1, 1))
    assert np.abs(whole).max(axis=(1, 2, 3)).tolist() == [127, 127, 0, 127]
    assert (np.abs(whole * scales - weight) <= scales * 0.5001).all()  # float32 rounds as well


def network(bundle: Path) -> Any:
    graph = read_graph("unet", Bundle.open(bundle).model("unet"))
    restore_convolutions(graph)
    return graph


def test_the_ends_the_time_and_what_comes_from_the_prompt_are_left_out(bundle: Path) -> None:
    graph = network(bundle)
    found = [*between(graph, "sample")]
    rest = {path for node, path in modules_of(graph) if weight_of(node) is not None} - {*found}
    assert {"conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"} <= rest
    ends = ("conv_in", "conv_out", "linear_1", "linear_2", "time_emb_proj", "attn2.to_k", "attn2.to_v")
    assert {path for path in rest if not path.endswith(ends)} == set()
    assert {path for path in found if path.endswith(ends)} == set()
    assert {"down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.attn1.to_k"} <= {*found}


@pytest.fixture
def tables(bundle: Path) -> dict[str, Ranges]:
    """Wide ranges for a U-Net that has none: every value of its activations is within."""
    opened = Bundle.open(bundle)
    inputs = dict.fromkeys(between(network(bundle), "sample"), (-8.0, 8.0))
    return {"unet": Ranges(network_files(opened, "unet"), inputs)}


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def keep(folder: Path, content: bytes) -> Bundle:
    """Write a file of ranges into a bundle, listed in its manifest."""
    listed = with_ranges(Bundle.open(folder), content)
    (folder / str(stored_in(listed.manifest))).write_bytes(content)
    (folder / MANIFEST).write_text(json.dumps(listed.manifest))
    return Bundle.open(folder)


def test_ranges_are_read_back(copy: Path, tables: dict[str, Ranges]) -> None:
    opened = keep(copy, to_bytes(tables))
    assert read_ranges(opened) == tables
    second = keep(copy, to_bytes({"unet": dataclasses.replace(tables["unet"], inputs={"conv1": (-1.0, 2.0)})}))
    assert [name for name in second.manifest["files"] if FILE.fullmatch(name)] == [stored_in(second.manifest)]
    assert read_ranges(second)["unet"].inputs == {"conv1": (-1.0, 2.0)}


def damages(tables: dict[str, Ranges]) -> Iterator[tuple[str, bytes]]:
    """Contents that are no ranges of this bundle's, by what is wrong."""
    row = json.loads(to_bytes(tables))["unet"]
    files = dict(row["files"])
    files["unet/model.onnx"] = "0" * 64
    yield "not JSON", b"{"
    yield "no object", b"[]"
    yield "no table", b'{"unet": 1}'
    yield "a key less", json.dumps({"unet": {"files": row["files"]}}).encode()
    yield "inputs as a list", json.dumps({"unet": {**row, "inputs": []}}).encode()
    for ends in ([0.0], [1.0, 2.0], [-1.0, -0.5], [0.0, 0.0], [-1, 1], ["a", "b"], None, [-1.0, float("inf")], 3.0):
        yield f"the range {ends}", json.dumps({"unet": {**row, "inputs": {"conv_in": ends}}}).encode()
    yield "of another file", json.dumps({"unet": {**row, "files": files}}).encode()
    yield "of fewer files", json.dumps({"unet": {**row, "files": {}}}).encode()
    yield "of no component", json.dumps({"unknown": row}).encode()


def test_ranges_that_are_damaged_or_of_another_network_are_refused(copy: Path, tables: dict[str, Ranges]) -> None:
    """With one error that names the command which measures them, before any network is opened."""
    for what, content in damages(tables):
        opened = keep(copy, content)
        with pytest.raises(BundleError) as caught:
            open_engines(opened, "openvino", BackendSettings(compute="int8"))
        message = str(caught.value)
        assert message.startswith(f"int8: {'the ranges in' if what.startswith('of ') else 'cannot read the ranges'}"), (
            what
        )
        assert message.endswith("--against CHECKPOINT --compute int8 --store"), what
        open_engines(opened, "openvino", BackendSettings(compute="bf16"))  # which does not ask for them


def test_a_file_that_was_changed_is_refused_as_any_other(copy: Path, tables: dict[str, Ranges]) -> None:
    name = stored_in(keep(copy, to_bytes(tables)).manifest)
    (copy / str(name)).write_bytes(to_bytes(tables).replace(b"-8.0", b"-7.0"))
    with pytest.raises(BundleError, match=f"{name} was changed"):
        Bundle.open(copy)


def error(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.slow(minutes=0.05)
def test_islands_stay_out_of_int8(bundle: Path, tables: dict[str, Ranges]) -> None:
    """The more of a network is an island, the less it errs; with all of it, it is float32."""
    opened, results = Bundle.open(bundle), []
    ranges = tables["unet"].inputs
    for island in (None, "down_blocks", ""):
        engine = OpenVinoEngine(
            "unet",
            opened.model("unet"),
            compute="int8",
            ranges=ranges,
            in_float32=None if island is None else lambda path, island=island: path.startswith(island),
            specs=opened.specs("unet"),
        )
        results.append(engine(**feeds(engine))["out_sample"])
    exact = OpenVinoEngine("unet", opened.model("unet"), specs=opened.specs("unet"))
    expected = exact(**feeds(exact))["out_sample"]
    errors = [error(one, expected) for one in results]
    assert errors[2] < errors[1] < errors[0]
    assert errors[0] > 1e-3  # an error of int8, not of float32


def test_what_is_opened_has_the_ranges_of_its_component(
    copy: Path, tables: dict[str, Ranges], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A component without ranges computes beside int8, one that is an island in float32; other ranges, other file."""
    asked: list[tuple[str, str, bool, Any]] = []

    class Noted:
        def __init__(self, name: str, *_: Any, compute: str, ranges: Any, compiled: Path, **__: Any) -> None:
            asked.append((name, compute, ranges is not None, compiled))

    monkeypatch.setattr("ldmrt.runtime.backends.openvino.engine.OpenVinoEngine", Noted)
    opened = keep(copy, to_bytes(tables))
    other = {"unet": dataclasses.replace(tables["unet"], inputs={"conv_in": (-1.0, 1.0)})}
    for compute, own, islands in (
        ("int8", tables, {}), ("int8", other, {}), ("int8", tables, {"unet": {"": "why"}}), ("bf16", tables, {})
    ):  # fmt: skip
        settings = BackendSettings(compute=compute, ranges=own, islands=islands, keep_optimized=True)
        for name in ("unet", "text_encoder"):
            registry._open_openvino(opened, "openvino", settings, name)
    assert [one[:3] for one in asked] == [
        ("unet", "int8", True), ("text_encoder", "int8", False),
        ("unet", "int8", True), ("text_encoder", "int8", False),
        ("unet", "fp32", False), ("text_encoder", "int8", False),
        ("unet", "bf16", False), ("text_encoder", "bf16", False),
    ]  # fmt: skip
    assert len({one[3] for one in asked[::2]}) == 4


def test_the_rest_is_as_narrow_as_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    able = {"old": ("fp32", "int8"), "new": ("fp32", "bf16", "int8"), "GPU": ("fp32", "fp16", "int8")}
    monkeypatch.setattr("ldmrt.runtime.backends.openvino.devices.precisions", able.__getitem__)
    assert [beside_int8(device) for device in able] == ["fp32", "bf16", "fp16"]


def test_weights_take_half_their_steps_where_sums_would_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for flags in ("fpu sse4_2 avx2 fma", "avx2 avx_vnni", "avx512f avx512_vnni", "fp asimd asimddp", ""):
        monkeypatch.setattr("ldmrt.runtime.backends.openvino.int8.features", lambda flags=flags: flags)
        found.append(steps())
    assert found == [63, 127, 127, 127, 63]
    whole, scales = rounded(np.array([[1.0, -0.4]], np.float32), 0, 63)
    assert whole.tolist() == [[63, -25]]
    np.testing.assert_allclose(scales, [[1 / 63]], rtol=1e-6)
