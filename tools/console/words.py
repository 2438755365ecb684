"""The words of textual inversions, as commands list them."""

from collections.abc import Mapping, Sequence
from typing import Any

from ldmrt.runtime.tokenizer.vocabulary import added_words

MOST = 20  # words in a line


def own_words(tokenizers: Mapping[str, Mapping[str, bytes]], embeddings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The words that tokenizers have beside their vocabulary, without those of the embeddings added at export."""
    return added_words(tokenizers, [word for entry in embeddings for word in words_of(entry)])


def words_of(embedding: Mapping[str, Any]) -> list[str]:
    """The words of an embedding by its entry in the manifest, of which an old one names the first alone."""
    return list(embedding.get("words", [embedding["token"]]))


def listed(words: Sequence[str]) -> str:
    """Words in a line, the first of them where there are many."""
    more = f" and {len(words) - MOST} more" if len(words) > MOST else ""
    return ", ".join(words[:MOST]) + more
