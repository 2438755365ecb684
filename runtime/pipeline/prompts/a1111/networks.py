"""Read the LoRAs that a prompt names: <lora:NAME> and <lora:NAME:WEIGHT>, in which lyco stands for lora."""

import re
from dataclasses import dataclass

from ldmrt.runtime.pipeline.prompts.fragments import unreadable, weight_of

NETWORK = re.compile(r"<(lora|lyco|hypernet):([^<>]*)>")
EXPECTED = "<lora:NAME:WEIGHT>"


@dataclass(frozen=True)
class Tag:
    """Names a LoRA, its weight, and where in the prompt that stands."""

    name: str
    weight: float
    at: int


def split_networks(prompt: str) -> tuple[str, tuple[Tag, ...]]:
    """Split a prompt into its text and the LoRAs that it names.

    Raises:
        InvalidRequest: It names a hypernetwork, or a LoRA otherwise than expected.
    """
    tags = []
    for match in NETWORK.finditer(prompt):
        if match[1] == "hypernet":
            raise unreadable(prompt, match.start(), "a prompt loads no hypernet", expected="LoRAs alone")
        name, *weights = match[2].split(":")
        if not name.strip() or len(weights) > 1 or "=" in "".join(weights):
            raise unreadable(prompt, match.start(), "this names no LoRA and its one weight", expected=EXPECTED)
        at = match.end() - 1 - len(weights[0]) if weights else match.start()
        tags.append(Tag(name.strip(), weight_of(prompt, weights[0], at) if weights else 1.0, match.start()))
    return NETWORK.sub("", prompt), tuple(tags)


def place_in(prompt: str, at: int) -> int:
    """Return where a character of a prompt's text stands in the prompt."""
    for match in NETWORK.finditer(prompt):
        if match.start() > at:
            break
        at += len(match[0])
    return at
