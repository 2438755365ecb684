"""OpenVINO in a narrow precision: which modules stay in float32, and how that is stated."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import Bundle, BundleError, Certificate
from ldmrt.runtime.backends import registry
from ldmrt.runtime.backends.openvino import network
from ldmrt.runtime.backends.openvino.devices import core, precisions
from ldmrt.runtime.backends.openvino.engine import OpenVinoEngine
from ldmrt.runtime.backends.openvino.islands import KEY, MARKED, keep_in_float32, modules_of
from ldmrt.runtime.backends.openvino.network import modules
from ldmrt.runtime.backends.registry import BackendSettings
from ldmrt.runtime.bundle.graphs import inside
from ldmrt.runtime.bundle.manifest import MANIFEST
from ldmrt.runtime.parity.tolerances import COMPONENT
from ldmrt.runtime.tensors import Arrays

from .test_openvino import close, feeds

ISLAND = "mid_block.resnets.0"
brain_float = pytest.mark.skipif("bf16" not in precisions("CPU"), reason="no bfloat16 on this CPU")


def unet(bundle: Path, **how: Any) -> OpenVinoEngine:
    opened = Bundle.open(bundle)
    return OpenVinoEngine("unet", opened.model("unet"), specs=opened.specs("unet"), **how)


def error(found: Arrays, expected: Arrays) -> float:
    ((name, one),) = expected.items()
    return float(np.abs(found[name] - one).max() / np.abs(one).max())


def test_modules_are_those_of_the_graph(bundle: Path) -> None:
    found = modules("unet", Bundle.open(bundle).model("unet"))
    assert {"mid_block", "mid_block.resnets", ISLAND, f"{ISLAND}.conv1", "conv_in"} <= {*found}
    assert "" not in found
    assert not any("/" in path for path in found)
    assert found == sorted(found)


def test_the_nodes_of_an_island_are_marked(bundle: Path) -> None:
    """Those that the reader of ONNX made of one node of several are of the module that uses them."""
    graph = network.read_graph("unet", Bundle.open(bundle).model("unet"))
    keep_in_float32(graph, lambda path: inside(path, ISLAND))
    marked = {node.get_name() for node in graph.get_ops() if KEY in node.get_rt_info()}
    named = {node.get_name(): node.get_friendly_name() for node in graph.get_ops() if "/" in node.get_friendly_name()}
    assert {name for name, friendly in named.items() if inside(friendly.partition("/")[0], ISLAND)} == marked & {*named}
    assert any(named[name].startswith(f"{ISLAND}.conv1/Conv") for name in marked & {*named})
    assert marked - {*named}
    assert {node.get_name() for node, path in modules_of(graph) if inside(path, ISLAND)} == marked


def test_the_mark_is_what_this_openvino_knows() -> None:
    """As OpenVINO itself writes and reads it: a version that has another name for it fails here."""
    graph = core().read_model(MARKED.encode())
    assert [KEY in node.get_rt_info() for node in graph.get_ordered_ops()] == [False, True, False]


@pytest.mark.slow(minutes=0.05)
@brain_float
def test_an_island_computes_in_float32(bundle: Path) -> None:
    exact = unet(bundle)
    islands = (("",), ("down_blocks", "up_blocks"), ())
    chosen = [lambda path, some=some: any(one == "" or inside(path, one) for one in some) for some in islands]
    narrow = [unet(bundle, compute="bf16", in_float32=in_float32) for in_float32 in chosen]
    inputs = feeds(exact)
    expected = exact(**inputs)
    errors = [error(engine(**inputs), expected) for engine in narrow]
    assert 0 < errors[0] < errors[1] < errors[2] <= COMPONENT["bf16"].limit


def test_a_component_that_is_one_island_is_float32(bundle: Path) -> None:
    settings = BackendSettings(compute="bf16", islands={"unet": {"": "error"}})
    exact, engine = unet(bundle), registry._open_openvino(Bundle.open(bundle), "openvino", settings, "unet")
    close(engine(**feeds(exact)), exact(**feeds(exact)), 0.0)


BARE = Certificate((), (), (), {"bundle": {}})


def stated(bundle: Path, folder: Path, islands: Any) -> Bundle:
    """A bundle whose certificate states these islands."""
    copy = Path(shutil.copytree(bundle, folder / "bundle"))
    manifest = json.loads((copy / MANIFEST).read_text())
    name = "reference-0123456789ab.npz"
    (copy / name).write_bytes(b"")
    manifest["files"][name] = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    manifest["certificate"] = {"reference": name, **dataclasses.replace(BARE, islands=islands).to_json()}
    (copy / MANIFEST).write_text(json.dumps(manifest))
    return Bundle.open(copy)


def test_the_certificate_states_them(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All graphs of a component use its islands, and a network compiled with other islands is not reused."""
    asked: list[tuple[str, str, bool, Any]] = []

    class Noted:
        def __init__(self, name: str, *_: Any, compute: str, in_float32: Any, compiled: Path, **__: Any) -> None:
            asked.append((name, compute, in_float32 is not None and in_float32(f"{ISLAND}.conv1"), compiled))

    monkeypatch.setattr("ldmrt.runtime.backends.openvino.engine.OpenVinoEngine", Noted)
    islands = {"openvino bf16": {"unet": {ISLAND: "why"}, "vae_decoder": {"": "why"}}}
    opened = stated(bundle, tmp_path, islands)
    assert opened.islands("openvino", "bf16") == islands["openvino bf16"]
    assert opened.islands("openvino", "fp32") == opened.islands("openvino-gpu", "bf16") == {}
    for compute, own in (("bf16", None), ("bf16", {}), ("fp32", None)):
        settings = BackendSettings(compute=compute, islands=own, keep_optimized=True)
        for name in ("unet", "vae_decoder", "vae_decoder_tile"):
            registry._open_openvino(opened, "openvino", settings, name)
    assert [one[:3] for one in asked] == [
        ("unet", "bf16", True), ("vae_decoder", "fp32", False), ("vae_decoder_tile", "fp32", False),
        ("unet", "bf16", False), ("vae_decoder", "bf16", False), ("vae_decoder_tile", "bf16", False),
        ("unet", "fp32", False), ("vae_decoder", "fp32", False), ("vae_decoder_tile", "fp32", False),
    ]  # fmt: skip
    assert len({one[3] for one in asked[::3]}) == 3  # with islands, without, and in float32


def test_islands_in_a_certificate_are_read_back() -> None:
    made = dataclasses.replace(BARE, islands={"openvino bf16": {"unet": {"mid_block": "error: 0.2"}}})
    assert Certificate.from_json(json.loads(json.dumps(made.to_json()))).islands == made.islands
    for damage in ({"openvino bf16": []}, {"openvino bf16": {"unet": 1}}, {"openvino bf16": {"unet": {"x": 1}}}, 3):
        with pytest.raises(BundleError, match="the certificate cannot be read"):
            Certificate.from_json({**made.to_json(), "islands": damage})
