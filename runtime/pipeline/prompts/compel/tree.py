"""Hold a prompt of compel's syntax: texts of fragments, which may be blended or stand side by side."""

from dataclasses import dataclass

from ldmrt.runtime.pipeline.prompts.fragments import Fragment, Fragments


@dataclass(frozen=True)
class Blend:
    """Texts whose embeddings are averaged: ("one", "other").blend(1, 0.5)."""

    texts: tuple[Fragments, ...]
    weights: tuple[float, ...]
    normalised: bool = True  # the weights are divided by their sum


@dataclass(frozen=True)
class Conjunction:
    """Texts whose embeddings stand side by side: ("one", "other").and(1, 0.5); one alone without an operator.

    Attributes:
        parts: The texts and blends.
        weights: How far each moves from the embedding of the empty text; 1 is its own.
        prompt: The whole prompt as it is written, of which compel makes the pooled embedding.
    """

    parts: tuple[Fragments | Blend, ...]
    weights: tuple[float, ...]
    prompt: str


def unescaped(text: str, weight: float = 1.0) -> Fragment:
    r"""Make a fragment of a text in which \( \) and \" stand for the character.

    compel does so each time it copies a fragment, and so does whoever calls this.
    """
    return Fragment(text.replace("\\(", "(").replace("\\)", ")").replace('\\"', '"'), weight)


def fused(fragments: Fragments) -> Fragments:
    """Join neighbours of one weight, with a space between them."""
    joined = list[Fragment]()
    for fragment in fragments:
        if joined and joined[-1].weight == fragment.weight:
            joined[-1] = unescaped(f"{joined[-1].text} {fragment.text}", fragment.weight)
        else:
            joined.append(fragment)
    return tuple(joined)
