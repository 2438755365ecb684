"""Read how an image was drawn from the graph of nodes that ComfyUI writes into it."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ldmrt.runtime.files.reading import JsonObject

from .strings import Strings, link

# The names of nodes' inputs, and what they are called here; the first that is found counts.
_NAMES = {
    "steps": "steps", "sampler_name": "sampler", "scheduler": "scheduler", "cfg": "guidance", "guidance": "guidance",
    "seed": "seed", "noise_seed": "seed", "width": "width", "height": "height", "denoise": "strength",
    "ckpt_name": "model", "unet_name": "model",
}  # fmt: skip
# The inputs of a node that reads a prompt, the first that has a text counts.
_TEXTS = ("text", "text_g", "clip_l", "t5xxl", "prompt", "value", "string")
_ROLES = {"positive": ("positive", "conditioning"), "negative": ("negative",)}


@dataclass(frozen=True)
class Drawn:
    """Holds what a graph says of its image, see `Description`."""

    prompt: str | None
    negative: str | None
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
    prompt, negative = (_prompt_of(nodes, order, role) for role in _ROLES)
    return Drawn(prompt, negative, settings)


def _samples(node: Mapping[str, Any]) -> bool:
    """Tell whether a node samples latents."""
    inputs = node["inputs"]
    return "latent_image" in inputs and ({"steps", "seed", "noise_seed", "noise", "sampler"} & inputs.keys()) != set()


def _upstream(
    nodes: Mapping[str, Any], *names: str, without: Collection[str] = (), ends: Callable[[str], bool] | None = None
) -> Iterator[str]:
    """Yield nodes and those that they depend on, each once, the nearest first.

    Args:
        nodes: All nodes.
        names: Those to begin with.
        without: Inputs that are not followed.
        ends: Tells of a node that none of its inputs is followed; by default of none.
    """
    seen = dict.fromkeys(names)
    queue = deque(seen)
    while queue:
        name = queue.popleft()
        yield name
        if ends is not None and ends(name):
            continue
        for source in _sources(nodes, name, without):
            if source not in seen:
                seen[source] = None
                queue.append(source)


def _sources(nodes: Mapping[str, Any], name: str, without: Collection[str] = ()) -> Iterator[str]:
    """Yield the nodes whose outputs are a node's inputs."""
    for key, value in nodes[name]["inputs"].items():
        if key not in without and (source := link(nodes, value)) is not None:
            yield source


def _prompt_of(nodes: Mapping[str, Any], order: list[str], role: str) -> str | None:
    """Return the prompt that the nearest input of a role leads to; "" where there is none, None of a computed one.

    Several that are combined stand in a line each, the nearest first.
    """
    links = (link(nodes, nodes[name]["inputs"].get(key)) for name in order for key in _ROLES[role])
    if (source := next((each for each in links if each is not None), None)) is None:
        return ""
    (other,) = _ROLES.keys() - {role}  # which a ControlNet's node has too
    strings, found = Strings(nodes), list[str]()
    given = {name: _given(node, role) for name, node in nodes.items()}
    for name in _upstream(nodes, source, without={other, *_TEXTS}, ends=lambda name: bool(given[name])):
        if given[name]:
            texts = [strings.text_of(value) for value in given[name]]
            text = next(filter(None, texts), None if None in texts else "")
            if text is None:
                return None
            found.append(text)
    return "\n".join(dict.fromkeys(filter(None, found))) if found else None


def _given(node: Mapping[str, Any], role: str) -> list[Any]:
    """Return the texts that a node encodes, or the links to them; some nodes have that of a role under its name."""
    if "zeroout" in str(node.get("class_type")).casefold():
        return [""]
    inputs = node["inputs"]
    given = [inputs[key] for key in _TEXTS if isinstance(inputs.get(key), (str, list))]
    return given + [inputs[key] for key in _ROLES[role] if isinstance(inputs.get(key), str)]
