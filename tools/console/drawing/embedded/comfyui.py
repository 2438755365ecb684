"""Read how an image was drawn from the graph of nodes that ComfyUI writes into it."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ldmrt.runtime.files.reading import JsonObject

# The names of nodes' inputs, and what they are called here; the first that is found counts.
_NAMES = {
    "steps": "steps", "sampler_name": "sampler", "scheduler": "scheduler", "cfg": "guidance", "guidance": "guidance",
    "seed": "seed", "noise_seed": "seed", "width": "width", "height": "height", "denoise": "strength",
    "ckpt_name": "model", "unet_name": "model",
}  # fmt: skip
_TEXTS = ("text", "text_g", "clip_l", "t5xxl", "value", "string")
_POSITIVE, _NEGATIVE = ("positive", "conditioning"), ("negative",)


@dataclass(frozen=True)
class Drawn:
    """Holds what a graph says of its image, see `Description`."""

    prompt: str
    negative: str
    settings: JsonObject


def read_graph(graph: JsonObject) -> Drawn | None:
    """Read the last node that samples latents, and the nodes that it depends on; None where no node samples.

    Args:
        graph: Nodes by number, each with its "class_type" and "inputs": values, or [node, output].
    """
    nodes = {
        str(name): node
        for name, node in graph.items()
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    sampling = [name for name, node in nodes.items() if _samples(node)]
    if not sampling:
        return None
    used = set(_upstream(nodes, *(source for name in sampling for source in _sources(nodes, name))))
    last = [name for name in sampling if name not in used]
    order = list(_upstream(nodes, (last or sampling)[-1]))
    settings: JsonObject = {}
    for name in order:
        for key, value in nodes[name]["inputs"].items():
            if key in _NAMES and not isinstance(value, (list, dict)):
                settings.setdefault(_NAMES[key], value)
    prompt, negative = (_text_of(nodes, order, keys) for keys in (_POSITIVE, _NEGATIVE))
    return Drawn(prompt, negative, settings)


def _samples(node: Mapping[str, Any]) -> bool:
    """Tell whether a node samples latents."""
    inputs = node["inputs"]
    return "latent_image" in inputs and ({"steps", "seed", "noise_seed", "noise", "sampler"} & inputs.keys()) != set()


def _upstream(nodes: Mapping[str, Any], *names: str) -> Iterator[str]:
    """Yield nodes and those that they depend on, each once, the nearest first."""
    seen = dict.fromkeys(names)
    queue = deque(seen)
    while queue:
        name = queue.popleft()
        yield name
        for source in _sources(nodes, name):
            if source not in seen:
                seen[source] = None
                queue.append(source)


def _sources(nodes: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield the nodes whose outputs are a node's inputs."""
    for value in nodes[name]["inputs"].values():
        if (source := _link(nodes, value)) is not None:
            yield source


def _link(nodes: Mapping[str, Any], value: object) -> str | None:
    """Return the node that an input is an output of; None of a value."""
    linked = isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int)) and str(value[0]) in nodes
    return str(value[0]) if linked and isinstance(value, list) else None


def _text_of(nodes: Mapping[str, Any], order: list[str], keys: tuple[str, ...]) -> str:
    """Return the text that the nearest input of these names leads to; "" where there is none."""
    for name in order:
        for key in keys:
            source = _link(nodes, nodes[name]["inputs"].get(key))
            if source is None:
                continue
            for node in _upstream(nodes, source):
                for field in _TEXTS:
                    text = nodes[node]["inputs"].get(field)
                    if isinstance(text, str) and text:
                        return text
            return ""
    return ""
