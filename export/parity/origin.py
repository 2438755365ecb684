"""Checks without running a graph that its weights are the checkpoint's to the bit, and its norms have their eps."""

import hashlib
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ldmrt.export.components.component import Component
from ldmrt.export.components.fingerprint import fingerprint, scale_of_norm, weights_of_graph
from ldmrt.export.components.table import components
from ldmrt.export.graph.cpu import upsample, winograd
from ldmrt.export.graph.naming import module_path
from ldmrt.model.checkpoint.checkpoint import Checkpoint
from ldmrt.model.weights.unread import read_alone
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.tensors import Array

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

MADE = {upsample.FIRST: upsample.kernels, winograd.TILES: winograd.kernels}  # of weights, by what their names end in


def other_graph(component: Component, path: Path) -> Iterator[str]:
    """Yield a line for each part of the graph at `path` that is not the component's.

    Constants stand under their weight's name, or folded, turned or shared: then under any name. Where a convolution
    was written otherwise (`upsample`, `winograd`), what was made of its weight does.
    """
    import onnx

    try:
        model, beside = onnx.load(str(path), load_external_data=False), str(path.parent)
        digests = {one.name: _digest(onnx.numpy_helper.to_array(one, beside)) for one in model.graph.initializer}
    except Exception as error:  # of protobuf, of the file's end, of the other file
        raise LdmrtError(component.name, f"cannot read {path}", found=first_line(error)) from None
    anywhere = set(digests.values())
    for key, weight in weights_of_graph(component).items():
        name, numbers = module_path(key), read_alone(weight)
        # NumPy has no bfloat16
        plain = numbers.view(torch.int16).numpy() if numbers.dtype == torch.bfloat16 else numbers.numpy()
        folded = {_digest(one) for one in _folded(component, key, numbers)}
        if not _stands(name, plain, digests, anywhere) and not anywhere & folded:
            yield f"{component.name}: {name} differs from the checkpoint's"
    nodes = {node.name: node for node in model.graph.node}
    constants = {one.name: one for one in model.graph.initializer}
    for key, module in component.module.named_modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            name = module_path(key)
            kind = "InstanceNormalization" if isinstance(module, nn.GroupNorm) else "LayerNormalization"
            computed = _computed_as(name, kind, nodes)
            found: dict[str, float | None] = {"epsilon": _epsilon(nodes.get(f"{computed}/{kind}"))}
            expected: dict[str, float] = {"epsilon": np.float32(module.eps)}
            if isinstance(module, nn.GroupNorm):
                found["groups"] = _groups(nodes.get(f"{computed}/Reshape"), constants, beside)
                expected["groups"] = module.num_groups
            for what, value in expected.items():
                if found[what] != value:
                    yield f"{component.name}: {what} of {name} is {found[what]}, not {value}"


def _folded(component: Component, key: str, weight: torch.Tensor) -> Iterator[Array]:
    """Yield what text encoders make of a weight before they read a text, which a graph holds in its place.

    T5 makes biases of its relative positions' weight, and Gemma's norms make scales of theirs.
    """
    if (scale := scale_of_norm(component, key, weight)) is not None:
        yield scale.numpy()
    path, _, kind = key.rpartition(".relative_attention_bias.")
    if kind != "weight":
        return
    attention, tokens = component.module.get_submodule(path), int(component.inputs[0].shape[1])
    distances = torch.arange(tokens)[None] - torch.arange(tokens)[:, None]
    buckets = attention._relative_position_bucket(  # type: ignore[operator]
        distances, bidirectional=True, num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )  # fmt: skip
    bias = nn.functional.embedding(buckets, weight).permute(2, 0, 1)
    yield (bias.contiguous().view(torch.int16) if bias.dtype == torch.bfloat16 else bias).numpy()


def _computed_as(name: str, kind: str, nodes: "Mapping[str, NodeProto]") -> str:
    """Return the module whose nodes normalise for a norm: another one where both take the same, so one is enough."""
    scale = nodes.get(f"{name}/Mul")
    return name if f"{name}/{kind}" in nodes or scale is None else scale.input[0].rpartition("/")[0]


def _stands(name: str, weight: Array, digests: Mapping[str, bytes], anywhere: Set[bytes]) -> bool:
    """Whether a weight is among the constants: whole, or as the kernels that were made of it."""
    for first, kernels in MADE.items():
        if name + first in digests:
            return all(digests.get(name + end) == _digest(kernel) for end, kernel in kernels(weight))
    ways = {_digest(weight)} | ({_digest(weight.T)} if weight.ndim == 2 else set())
    return digests[name] in ways if name in digests else bool(anywhere & ways)


def _epsilon(node: "NodeProto | None") -> float:
    given = [one.f for one in node.attribute if one.name == "epsilon"] if node else [np.nan]
    return np.float32([*given, 1e-5][0])  # which is where ONNX has none


def _groups(node: "NodeProto | None", constants: "Mapping[str, TensorProto]", beside: str) -> int | None:
    """Return the groups of a shape (0, groups, -1)."""
    import onnx

    if node is None or node.input[1] not in constants:
        return None
    shape = onnx.numpy_helper.to_array(constants[node.input[1]], beside)
    return int(shape[1]) if len(shape) == 3 else None


def _digest(array: Array) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def other_origin(bundle: Bundle, checkpoint: Checkpoint) -> list[str]:
    """List the parts of a bundle that do not come from this checkpoint: weights, configs, scheduler and such."""
    differ = []
    for name, component in components(checkpoint).items():
        for key, value in fingerprint(component).items():
            if bundle.manifest["components"].get(name, {}).get(key) != value:
                differ.append(f"{key} of {name}")
        if name in bundle.components:
            differ += other_graph(component, bundle.model(name))
    if dict(bundle.scheduler) != checkpoint.scheduler:
        differ.append("scheduler")
    for folder, files in checkpoint.tokenizers.items():
        for name, content in files.items():
            path = bundle.path / folder / name
            if not path.is_file() or path.read_bytes() != content:
                differ.append(f"{folder}/{name}")
    return differ
