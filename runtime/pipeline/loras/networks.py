"""Describe the networks of a bundle that a LoRA is for, from their configs and graphs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.graphs import DENOISERS, denoiser_of
from ldmrt.runtime.files.lora.names import flat
from ldmrt.runtime.files.lora.original_unet import unet_modules
from ldmrt.runtime.files.lora.placing import UNET, Network
from ldmrt.runtime.files.lora.rows import Target, renamed

from .graph_weights import GraphWeights
from .stored import Stored, stored_parameters

HINT = "a LoRA of the bundle's family; or ldmrt export CHECKPOINT BUNDLE --lora FILE:WEIGHT, which reads more names"
FIRST_LAYER = re.compile(r"(encoder_layers_)0(_.+)")


@dataclass(frozen=True)
class Graph:
    """Holds the weights of a graph, and where the parameters of its modules stand among them."""

    weights: GraphWeights = field(repr=False)

    @cached_property
    def parameters(self) -> Mapping[str, Stored]:
        """Where each parameter stands, by its name."""
        return stored_parameters(self.weights)


def adaptable(bundle: Bundle) -> dict[str, Network]:
    """Describe the network that denoises and the text encoders, by component."""
    denoiser = denoiser_of(bundle.components)
    names = [name for name in bundle.components if name == denoiser or name.startswith("text_encoder")]
    return {name: _network(bundle, name) for name in names}


def _network(bundle: Bundle, name: str) -> Network:
    """Describe one of the networks."""
    config = bundle.contents.json(f"{name}/config.json")
    graph = Graph(GraphWeights.read(name, bundle.model(name)))
    shapes = {parameter: stored.shape for parameter, stored in graph.parameters.items()}
    if name in DENOISERS:
        kind = str(config.get("_class_name"))
        return Network(kind, shapes, _original_names(config, shapes) if kind == UNET else {})
    kind = str(next(iter(config.get("architectures") or ()), ""))
    return Network(kind, shapes, unused=_unused(config, shapes))


def _original_names(config: Mapping[str, Any], shapes: Mapping[str, object]) -> dict[str, Target]:
    """Return what the layers of a U-Net are for by their original names."""
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    each = layers if isinstance(layers, list) else [layers] * levels
    return renamed(shapes, unet_modules(each, config["up_block_types"]))


def _unused(config: Mapping[str, Any], shapes: Mapping[str, object]) -> set[str]:
    """Name the layers of a text encoder that its graph lacks, as no output depends on them: CLIP's last in SDXL."""
    own = {flat(key.rpartition(".")[0]) for key in shapes}
    count, first = config.get("num_hidden_layers"), [match for name in own if (match := FIRST_LAYER.fullmatch(name))]
    every = {f"{match[1]}{layer}{match[2]}" for match in first for layer in range(count or 0)}
    return every - own
