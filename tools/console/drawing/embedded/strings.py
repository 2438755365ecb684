"""Follow the nodes of a ComfyUI graph that hold and join texts."""

import re
from collections.abc import Mapping
from typing import Any

# The one input of a node that holds a text, such as PrimitiveStringMultiline; ComfyUI and its extensions name it so.
_HELD = ("value", "string", "text", "prompt", "positive", "negative")
_SHOWS = ("reroute", "showtext")  # nodes that give their text on, whatever else they keep
_JOINS = re.compile("concat|join", re.IGNORECASE)
_PART = re.compile(r"(?:string|text|prompt)_?([a-z]|\d{1,3})", re.IGNORECASE)  # string_a, text2, prompt_3
_BETWEEN = ("delimiter", "separator")
_DEPTH = 32  # nodes behind one another
_ROOM = 1 << 22  # characters of all texts that are joined: each node may double its text


def link(nodes: Mapping[str, Any], value: object) -> str | None:
    """Return the node that an input is an output of; None of a value."""
    linked = isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int)) and str(value[0]) in nodes
    return str(value[0]) if linked and isinstance(value, list) else None


class Strings:
    """The texts that nodes give, as far as they are held or joined, each followed once."""

    def __init__(self, nodes: Mapping[str, Any]) -> None:
        """Take nodes by number, each with its "inputs"."""
        self.nodes = nodes
        self.known = dict[str, str | None]()
        self.room = _ROOM

    def text_of(self, value: object, depth: int = 0) -> str | None:
        """Return the text that an input has or is linked to; None where it is computed in another way."""
        if isinstance(value, str):
            return value
        name = link(self.nodes, value)
        if name is None or depth > _DEPTH:
            return None
        if name not in self.known:
            self.known[name] = None  # of a circle
            self.known[name] = self._given_by(self.nodes[name], depth + 1)
        return self.known[name]

    def _given_by(self, node: Mapping[str, Any], depth: int) -> str | None:
        """Return the text that a node gives."""
        kind, inputs = str(node.get("class_type")), node["inputs"]
        if _JOINS.search(kind):
            return self._joined(inputs, depth)
        if kind.casefold().startswith(_SHOWS):
            linked = (value for value in inputs.values() if link(self.nodes, value) is not None)
            return self.text_of(next(linked, None), depth)
        used = [name for name, value in inputs.items() if value not in (None, "", False)]
        held = [name for name in inputs if name.casefold() in _HELD]
        if len(held) == 1 and used in ([], held):
            return self.text_of(inputs[held[0]], depth)
        return None

    def _joined(self, inputs: Mapping[str, Any], depth: int) -> str | None:
        """Return the texts of a node's numbered inputs, with its delimiter between them."""
        found = {name: match[1].casefold() for name in inputs if (match := _PART.fullmatch(name))}
        order = sorted(found, key=lambda name: (len(found[name]), found[name]))
        parts = [self.text_of(inputs[name], depth) for name in order]
        between = next((inputs[name] for name in _BETWEEN if name in inputs), "")
        if not parts or not isinstance(between, str):
            return None
        texts = [part for part in parts if part is not None]
        if len(texts) < len(parts):
            return None
        if "clean_whitespace" in inputs:  # of the node suite WAS, and of those that follow it
            clean, between = str(inputs["clean_whitespace"]).casefold() == "true", between.replace("\\n", "\n")
            texts = [text for text in (text.strip() if clean else text for text in texts) if text]
        self.room -= sum(map(len, texts)) + len(between) * len(texts)
        return between.join(texts) if self.room >= 0 else None
