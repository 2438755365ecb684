"""Cut texts of any length into chunks of as many tokens as a text encoder reads, each token with its weight."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.pipeline.prompts.fragments import Fragments
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

Token = tuple[int, float]  # an id and its weight
NEAR = 20  # tokens after a comma that follow it into the next chunk, rather than be cut from what they belong to
SENTENCE, PHRASE = (".</w>",), (".</w>", ",</w>", ";</w>", ":</w>")
WORD_END = "</w>"


@dataclass(frozen=True)
class Chunks:
    """Holds a text as a text encoder reads it.

    Attributes:
        ids: With start, end and padding, (chunks, tokens), int64.
        weights: Of each token, (chunks, tokens), float32; 1 for start, end and padding.
        places: Where each fragment begins and ends, by tokens of all chunks; None of one without tokens.
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    places: tuple[tuple[int, int] | None, ...] = ()

    @classmethod
    def of(cls, chunks: Sequence[Sequence[Token]], tokenizer: Tokenizer) -> "Chunks":
        """Put start, end and padding around the tokens of each chunk."""
        ids = np.full((len(chunks), tokenizer.length), tokenizer.pad, np.int64)
        weights = np.ones(ids.shape, np.float32)
        for row, own, chunk in zip(ids, weights, chunks, strict=True):
            row[: len(chunk) + 2] = [tokenizer.start, *(token for token, _ in chunk), tokenizer.end]
            with np.errstate(over="ignore"):  # states that are not finite are refused
                own[1 : len(chunk) + 1] = [weight for _, weight in chunk]
        return cls(ids, weights)


def room(tokenizer: Tokenizer) -> int:
    """Return how many tokens of a text fit into a chunk: 75 of CLIP's 77."""
    return tokenizer.length - 2


def a1111_chunks(sections: Sequence[Fragments], tokenizer: Tokenizer) -> Chunks:
    """Cut sections into chunks as AUTOMATIC1111's program does.

    A section begins a chunk. Where one is full, what follows a comma that is near moves into the next. The vectors of
    an added word stay together.
    """
    size, comma = room(tokenizer), tokenizer.id_of(",</w>")
    chunks, chunk, last_comma = list[list[Token]](), list[Token](), -1
    for number, section in enumerate(sections):
        if number:
            chunks.append(chunk)
            chunk, last_comma = [], -1
        for fragment in section:
            for piece in tokenizer.pieces(fragment.text):
                if piece == (comma,):
                    last_comma = len(chunk)
                elif len(chunk) == size and last_comma != -1 and size - last_comma <= NEAR:
                    chunks.append(chunk[: last_comma + 1])
                    chunk, last_comma = chunk[last_comma + 1 :], -1
                for together in [piece] if len(piece) <= size else [(token,) for token in piece]:
                    if len(chunk) + len(together) > size:
                        chunks.append(chunk)
                        chunk, last_comma = [], -1
                    chunk += [(token, fragment.weight) for token in together]
    if chunk or not chunks:
        chunks.append(chunk)
    return Chunks.of(chunks, tokenizer)


def compel_chunks(fragments: Fragments, tokenizer: Tokenizer) -> Chunks:
    """Cut fragments into chunks as compel does: at the last sentence that fits, else phrase, else word."""
    size, tokens, spans = room(tokenizer), list[Token](), list[tuple[int, int]]()
    for fragment in fragments:
        own = [token for piece in tokenizer.pieces(fragment.text) for token in piece]
        spans.append((len(tokens), len(tokens) + len(own)))
        tokens += [(token, fragment.weight) for token in own]
    cuts = [0]
    while len(tokens) - cuts[-1] > size:
        cuts.append(cuts[-1] + _cut([tokenizer.piece_of(token) for token, _ in tokens[cuts[-1] : cuts[-1] + size]]))
    ends = [*cuts[1:], len(tokens)]
    chunks = Chunks.of([tokens[first:end] for first, end in zip(cuts, ends, strict=True)], tokenizer)

    def place(token: int) -> int:
        chunk = max(number for number, first in enumerate(cuts) if first <= token)
        return chunk * tokenizer.length + 1 + token - cuts[chunk]

    places = tuple((place(first), place(end - 1)) if first < end else None for first, end in spans)
    return Chunks(chunks.ids, chunks.weights, places)


def _cut(pieces: Sequence[str]) -> int:
    """Return after how many tokens a chunk ends that cannot hold all that is left."""
    for ends in (SENTENCE, PHRASE):
        if found := [place for place, piece in enumerate(pieces) if piece in ends]:
            return found[-1] + 1
    words = [place for place, piece in enumerate(pieces) if piece.endswith(WORD_END)]
    return words[-1] + 1 if words else len(pieces)
