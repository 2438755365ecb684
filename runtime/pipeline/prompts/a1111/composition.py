"""Split a prompt at AND into texts that are drawn together, each with a weight (Liu et al. 2022, arXiv:2206.01714)."""

import re
from dataclasses import dataclass

from ldmrt.runtime.pipeline.prompts.fragments import weight_of

AND = re.compile(r"\bAND\b")
WEIGHT = re.compile(r":\s*([-+]?(?:\d+\.?|\d*\.\d+))$")


@dataclass(frozen=True)
class Part:
    """A text of a prompt, and its weight.

    Attributes:
        text: The text.
        weight: The weight of its prediction.
        at: Where the text begins in the prompt.
    """

    text: str
    weight: float = 1.0
    at: int = 0


def split_composition(prompt: str) -> tuple[Part, ...]:
    """Split a prompt at AND, as in "a cat :1.2 AND a hat :0.8"; a weight that is not stated is 1.

    Raises:
        InvalidRequest: A weight is no finite number.
    """
    parts, first = list[Part](), 0
    for match in [*AND.finditer(prompt), None]:
        text = prompt[first : match.start() if match else None].rstrip()
        weight = WEIGHT.search(text)
        if weight is None:
            parts.append(Part(text, 1.0, first))
        else:
            number = weight_of(prompt, weight[1], first + weight.start(1))
            parts.append(Part(text[: weight.start()].rstrip(), number, first))
        first = match.end() if match else first
    return tuple(parts)
