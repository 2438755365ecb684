"""What can be seen without running: a graph's weights are the checkpoint's to the bit, and its norms have their eps."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.errors import first_line

from .components import Component
from .names import module_path


def other_graph(component: Component, path: Path) -> Iterator[str]:
    """Where the graph at `path` is not the component's, one line each.

    Constants stand under their weight's name, or folded, turned or shared: then under any name.
    """
    import onnx

    try:
        model, beside = onnx.load(str(path), load_external_data=False), str(path.parent)
        digests = {one.name: _digest(onnx.numpy_helper.to_array(one, beside)) for one in model.graph.initializer}
    except Exception as error:  # of protobuf, of the file's end, of the other file
        raise LdmrtError(component.name, f"cannot read {path}", found=first_line(error)) from None
    anywhere = set(digests.values())
    for key, value in component.module.state_dict().items():
        name = module_path(key)
        plain = value.view(torch.int16).numpy() if value.dtype == torch.bfloat16 else value.numpy()  # NumPy has none
        ways = [_digest(plain)]
        if value.ndim == 2:
            ways.append(_digest(plain.T))
        if digests[name] not in ways if name in digests else not anywhere.intersection(ways):
            yield f"{component.name}: {name} is another"
    nodes = {node.name: node for node in model.graph.node}
    for key, module in component.module.named_modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            grouped = isinstance(module, nn.GroupNorm)
            name, kind = module_path(key), "GroupNormalization" if grouped else "LayerNormalization"
            found = _attributes(nodes.get(f"{name}/{kind}"))
            expected = {"epsilon": np.float32(module.eps), **({"num_groups": module.num_groups} if grouped else {})}
            for attribute, value in expected.items():
                if found.get(attribute) != value:
                    yield f"{component.name}: {attribute} of {name} is {found.get(attribute)}, not {value}"


def _digest(array: Any) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    if node is None:
        return {}
    values = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    return {**values, "epsilon": np.float32(values.get("epsilon", 1e-5))}
