"""Faults to plant in a bundle: each is what an exporter, an optimiser or a user could do to it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ldmrt.runtime.bundle.manifest import MANIFEST
from ldmrt.runtime.files.reading import sha256

Plant = Callable[[Path], None]


def truthful(bundle: Path) -> None:
    """Make the manifest say what the files now are: the fault is then in the numbers alone."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    for name, entry in manifest["files"].items():
        entry |= {"size": (bundle / name).stat().st_size, "sha256": sha256(bundle / name)}
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def change_a_weight(bundle: Path, component: str) -> None:
    """The least bit of one number, as training a step further might."""
    path = bundle / component / "model.onnx_data"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    truthful(bundle)


def graph(component: str, change: Callable[[Any], None]) -> Plant:
    """Change a component's graph."""

    def plant(bundle: Path) -> None:
        path = bundle / component / "model.onnx"
        model = onnx.load(str(path))
        before = model.SerializeToString()
        change(model.graph)
        assert model.SerializeToString() != before
        (path.parent / "model.onnx_data").unlink()
        onnx.save(model, str(path), save_as_external_data=True, location="model.onnx_data", size_threshold=1024)

    return plant


def weight(component: str, name: str, change: Callable[[Any], Any]) -> Plant:
    """Change a constant."""

    def edit(graph: Any) -> None:
        tensor = next(one for one in graph.initializer if one.name == name)
        value = numpy_helper.to_array(tensor)
        changed = np.ascontiguousarray(change(value.copy()), value.dtype)
        assert changed.shape == value.shape
        tensor.CopyFrom(numpy_helper.from_array(changed, name))

    return graph(component, edit)


def swapped(component: str, one: str, other: str) -> Plant:
    """Two weights of one shape, each in the other's place."""

    def edit(graph: Any) -> None:
        first, second = (next(t for t in graph.initializer if t.name == name) for name in (one, other))
        assert first.dims == second.dims
        first.name, second.name = other, one

    return graph(component, edit)


def attribute(component: str, node: str, name: str, value: Any) -> Plant:
    """Another attribute of a node."""

    def edit(graph: Any) -> None:
        found = node_of(graph, node)
        kept = [one for one in found.attribute if one.name != name]
        del found.attribute[:]
        found.attribute.extend([*kept, helper.make_attribute(name, value)])

    return graph(component, edit)


def regrouped(component: str, norm: str, groups: int) -> Plant:
    """A GroupNorm of other groups, by constants of its own."""

    def edit(graph: Any) -> None:
        fresh = {"shape": np.array([0, groups, -1]), "one": np.ones(groups, "f"), "zero": np.zeros(groups, "f")}
        graph.initializer.extend(numpy_helper.from_array(value, f"{norm}.{name}") for name, value in fresh.items())
        node_of(graph, f"{norm}/Reshape").input[1] = f"{norm}.shape"
        node_of(graph, f"{norm}/InstanceNormalization").input[1:] = [f"{norm}.one", f"{norm}.zero"]

    return graph(component, edit)


def skipped(component: str, node: str, keep: int = 0) -> Plant:
    """A node that passes one of its inputs on."""

    def edit(graph: Any) -> None:
        found = node_of(graph, node)
        passed = found.input[keep]
        found.CopyFrom(helper.make_node("Identity", [passed], list(found.output), name=node))

    return graph(component, edit)


def operator(component: str, node: str, kind: str) -> Plant:
    """Another operator of the same inputs."""
    return graph(component, lambda graph: setattr(node_of(graph, node), "op_type", kind))


def inputs(component: str, node: str, order: list[int]) -> Plant:
    """The inputs in another order; those left out are gone."""

    def edit(graph: Any) -> None:
        found = node_of(graph, node)
        given = list(found.input)
        del found.input[:]
        found.input.extend(given[i] for i in order)

    return graph(component, edit)


def halved(component: str, value: str) -> Plant:
    """A value that goes through float16."""

    def edit(graph: Any) -> None:
        users = [node for node in graph.node if value in node.input]
        place = min(list(graph.node).index(node) for node in users)
        for node in users:
            for i, name in enumerate(node.input):
                if name == value:
                    node.input[i] = "rounded"
        graph.node.insert(place, helper.make_node("Cast", ["half"], ["rounded"], to=TensorProto.FLOAT))
        graph.node.insert(place, helper.make_node("Cast", [value], ["half"], to=TensorProto.FLOAT16))

    return graph(component, edit)


def config(file: str, **change: Any) -> Plant:
    """Other values in a JSON file."""

    def plant(bundle: Path) -> None:
        path = bundle / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    return plant


def space(**change: Any) -> Plant:
    """Other values in the space of the manifest's stage."""

    def plant(bundle: Path) -> None:
        path = bundle / "ldmrt.json"
        manifest = json.loads(path.read_text())
        manifest["stages"][0]["space"] |= change
        path.write_text(json.dumps(manifest))

    return plant


def lines(file: str, change: Callable[[list[str]], list[str]]) -> Plant:
    """Other lines in a file of text."""

    def plant(bundle: Path) -> None:
        path = bundle / file
        path.write_text("\n".join(change(path.read_text().rstrip().split("\n"))) + "\n")

    return plant


def node_of(graph: Any, name: str) -> Any:
    """A node by its name."""
    return next(node for node in graph.node if node.name == name)
