"""Describe what a component is made of, as a manifest holds it: hashes, inputs and outputs."""

import hashlib
import json

import torch
from torch import Tensor

from ldmrt.model.library.gemma2 import Norm
from ldmrt.model.library.t5 import EMBEDDED, SHARED
from ldmrt.model.weights.unread import read_alone
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.tensors import Specs

from .component import Component


def fingerprint(component: Component) -> dict[str, str]:
    """Hash what a component is made of: its weights, and its config with its inputs and outputs."""
    weights = hashlib.sha256()
    for key, value in sorted(component.module.state_dict().items()):
        weights.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        weights.update(read_alone(value).contiguous().flatten().view(torch.uint8).numpy().data)
    described = [
        component.config,
        _specs(component.inputs),
        _specs(component.outputs),
    ]
    config = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    return {"weights": weights.hexdigest(), "config": config.hexdigest()}


def weights_of_graph(component: Component) -> dict[str, Tensor]:
    """Return the weights that a component's graph holds, by their names in the module.

    T5's embeddings have two names, of which its encoder reads one; with an island in float32 only that one is float32.
    """
    state = component.module.state_dict()
    twice = any(key.endswith(EMBEDDED) for key in state)
    return {key: weight for key, weight in state.items() if not (twice and key.endswith(SHARED))}


def scale_of_norm(component: Component, key: str, weight: Tensor) -> Tensor | None:
    """Return what a norm of Gemma multiplies by, in float32: 1 more than its weight; None for other weights."""
    gemma = isinstance(component.module.get_submodule(key.rpartition(".")[0]), Norm)
    return 1.0 + weight.float() if gemma else None


def ends_of(inputs: Specs, outputs: Specs) -> JsonObject:
    """Describe the inputs and outputs of a graph as the manifest does."""
    return {"inputs": _specs(inputs), "outputs": _specs(outputs)}


def _specs(specs: Specs) -> list[list[object]]:
    return [[spec.name, spec.dtype, list(spec.shape)] for spec in specs]
