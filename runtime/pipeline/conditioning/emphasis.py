"""Weigh the hidden states of a text's tokens, by the rules of each syntax."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.pipeline.prompts.a1111.reading import Sections
from ldmrt.runtime.pipeline.prompts.compel.tree import Blend, Conjunction
from ldmrt.runtime.pipeline.prompts.fragments import Fragments
from ldmrt.runtime.tensors import Array
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from .chunks import Chunks, a1111_chunks, compel_chunks, room

# Ids and a mask, 1 for each token that is seen, (chunks, tokens); states (chunks, tokens, width), float32.
States = Callable[[NDArray[np.int64], NDArray[np.int64]], Array]
LEAST = 1e-5  # weight, so that the share of a text without a fragment stays finite


def embed(text: Sections | Conjunction, tokenizer: Tokenizer, states: States) -> Array:
    """Embed a text that was read, (tokens, width): tokens are those of one chunk or more."""
    if isinstance(text, Sections):
        return embed_a1111(text, tokenizer, states)
    return embed_compel(text, tokenizer, states)


def embed_a1111(text: Sections, tokenizer: Tokenizer, states: States) -> Array:
    """Multiply the states by their weights, and give each chunk its mean back: the emphasis called Original."""
    chunks = a1111_chunks(text.sections, tokenizer)
    own = states(chunks.ids, np.ones_like(chunks.ids))
    weighted = own * chunks.weights[:, :, None]
    with np.errstate(divide="ignore", invalid="ignore"):  # states that are not finite are refused by the caller
        weighted *= (own.mean((1, 2)) / weighted.mean((1, 2)))[:, None, None]
    plain = (chunks.weights == 1).all(1)
    return _flat(np.where(plain[:, None, None], own, weighted))


def embed_compel(text: Conjunction, tokenizer: Tokenizer, states: States) -> Array:
    """Embed the parts of a text side by side: weights above 1 lead away from the empty text, those below towards it.

    A fragment below 1 is also masked in the text encoder, and the more of that text is taken the nearer its weight is
    to 0.
    """
    encoder = _Compel(tokenizer, states)
    parts = list[Array]()
    for part, weight in zip(text.parts, text.weights, strict=True):
        own = encoder.blend(part) if isinstance(part, Blend) else encoder.fragments(part)
        if weight != 1:
            empty = encoder.empty_to(len(own))
            own = empty + (own - empty) * np.float32(weight)
        parts.append(own)
    return np.concatenate(parts) if parts else encoder.empty


class _Compel:
    """Embeds as compel's EmbeddingsProvider with DownweightMode.MASK."""

    def __init__(self, tokenizer: Tokenizer, states: States) -> None:
        self.tokenizer, self.states = tokenizer, states
        ids = Chunks.of([[]], tokenizer).ids
        self.empty: Array = states(ids, np.ones_like(ids))[0]

    def empty_to(self, tokens: int) -> Array:
        """Return the empty text's embedding as often as it has so many tokens."""
        return np.tile(self.empty, (tokens // len(self.empty), 1))

    def blend(self, blend: Blend) -> Array:
        """Average the embeddings of texts; the shorter are filled up with that of the empty text."""
        each = [self.fragments(text) for text in blend.texts]
        most = max(map(len, each))
        each = [np.concatenate([one, self.empty_to(most - len(one))]) for one in each]
        return _averaged(each, blend.weights, normalised=blend.normalised)

    def fragments(self, fragments: Fragments) -> Array:
        """Embed a text of fragments."""
        chunks = compel_chunks(fragments, self.tokenizer)
        seen = np.ones_like(chunks.ids)
        embeddings, weights = [self._weighted(chunks, seen)], [1.0]
        for fragment, place in zip(fragments, chunks.places, strict=True):
            if fragment.weight >= 1 or place is None:
                continue
            masked = seen.copy()
            masked.reshape(-1)[place[0] : place[1] + 1] = 0
            masked[:, [0, -1]] = 1
            embeddings.append(self._weighted(chunks, masked))
            weights.append(math.tan((1 - max(LEAST, fragment.weight)) * math.pi / 2))
        return embeddings[0] if len(weights) == 1 else _averaged(embeddings, weights, normalised=True)

    def _weighted(self, chunks: Chunks, mask: NDArray[np.int64]) -> Array:
        own = self.states(chunks.ids, mask)
        weights = chunks.weights[:, :, None]
        return _flat(np.where(weights == 1, own, self.empty + (own - self.empty) * weights))


def _averaged(embeddings: Sequence[Array], weights: Sequence[float], *, normalised: bool) -> Array:
    """Weigh embeddings, each (tokens, width)."""
    each = np.array(weights, np.float32)
    each = each / each.sum() if normalised else each
    average: Array = np.tensordot(each, np.stack(embeddings), 1)
    return average


def _flat(states: Array) -> Array:
    """Put chunks one after another: (chunks, tokens, width) to (chunks x tokens, width)."""
    return states.reshape(-1, states.shape[-1])


def pooled_ids(text: Sections | Conjunction, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return the ids of which the pooled embedding is made, (1, tokens).

    AUTOMATIC1111's program takes the first chunk; compel the whole prompt as it is written, signs and all, cut to a
    chunk.
    """
    if isinstance(text, Sections):
        return a1111_chunks(text.sections, tokenizer).ids[:1]
    tokens = [(token, 1.0) for piece in tokenizer.pieces(text.prompt) for token in piece]
    return Chunks.of([tokens[: room(tokenizer)]], tokenizer).ids
