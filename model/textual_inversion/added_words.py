"""Add words to a tokenizer's files, each a token of its own (textual inversion)."""

import json
import re
from collections.abc import Collection, Mapping, Sequence

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.tokenizer.vocabulary import ADDED, END, START, read


def check_new(words: Sequence[str], known: Collection[str], added: Collection[str]) -> None:
    """Refuse words that are known, in any case: a prompt is read in lower case, and so are the words added to it.

    Args:
        words: The words of one embedding: word, word_1, word_2 ..., or several that stand alone.
        known: The whole vocabulary.
        added: The words in it that have been added before.

    Raises:
        LdmrtError: A word is known, or would be read as one more vector of another word.
    """
    hint = "--embedding FILE:WORD, with another word"
    lower = {word.lower() for word in (START, END, *added)}
    for word in (*words, f"{words[0]}_{len(words)}"):  # the one after the last would be taken for one more vector
        if word in known or word.lower() in lower:
            raise LdmrtError("tokenizer", f"{word!r} is already in the vocabulary", hint=hint)
    if (match := re.fullmatch(r"(.+)_\d+", words[0])) and match[1].lower() in lower:
        raise LdmrtError("tokenizer", f"{words[0]!r} would be read as one more vector of {match[1]!r}", hint=hint)


def with_words(files: Mapping[str, bytes], ids: Mapping[str, int]) -> dict[str, bytes]:
    """Return a tokenizer's files with these words, by id, in every file that lists added words."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    entries = {number: {"content": word, **plain} for word, number in ids.items()}
    changed: JsonObject = {ADDED: {**read(files, ADDED), **ids}}
    if whole := read(files, "tokenizer.json"):
        more = [{"id": number, **entry} for number, entry in entries.items()]
        changed["tokenizer.json"] = {**whole, "added_tokens": [*whole.get("added_tokens", []), *more]}
    config = read(files, "tokenizer_config.json")
    if decoder := config.get("added_tokens_decoder"):
        decoder = {**decoder, **{str(number): entry for number, entry in entries.items()}}
        changed["tokenizer_config.json"] = {**config, "added_tokens_decoder": decoder}
    new = {name: (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode() for name, value in changed.items()}
    return {**files, **new}
