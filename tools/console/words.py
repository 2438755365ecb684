"""Lists of the words that textual inversions and a checkpoint's tokenizers add."""

from collections.abc import Mapping, Sequence

from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.tokenizer.vocabulary import added_words

MOST = 20  # words in a line


def own_words(tokenizers: Mapping[str, Mapping[str, bytes]], embeddings: Sequence[JsonObject]) -> list[str]:
    """Return the words that tokenizers have beside their vocabulary, without those of embeddings added at export."""
    return added_words(tokenizers, [word for entry in embeddings for word in words_of(entry)])


def words_of(embedding: JsonObject) -> list[str]:
    """Return the words of an embedding's entry in the manifest; entries of old bundles name the first word only."""
    return list(embedding.get("words", [embedding["token"]]))


def listed(words: Sequence[str]) -> str:
    """Join words into a line; of many, the first and how many more there are."""
    more = f" and {len(words) - MOST} more" if len(words) > MOST else ""
    return ", ".join(words[:MOST]) + more
