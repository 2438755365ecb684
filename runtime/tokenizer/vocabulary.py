"""Read the words of a tokenizer from its files, and those that were added to its byte-pair vocabulary."""

import itertools
import re
from collections.abc import Collection, Mapping
from typing import Any

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.reading import parse_json

START, END = "<|startoftext|>", "<|endoftext|>"
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
ADDED = "added_tokens.json"

Files = Mapping[str, bytes]


def vocabulary(files: Files) -> tuple[dict[str, int], dict[str, int]]:
    """Return every word of a tokenizer with its id, and separately those added to the byte-pair vocabulary."""
    whole, config = (read(files, name) for name in ("tokenizer.json", "tokenizer_config.json"))
    words = _byte_pairs(files)
    try:
        added = {
            **{entry["content"]: int(entry["id"]) for entry in whole.get("added_tokens", [])},
            **{entry["content"]: int(number) for number, entry in config.get("added_tokens_decoder", {}).items()},
            **{word: int(number) for word, number in read(files, ADDED).items()},
        }
        return {**words, **added}, added
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise LdmrtError("tokenizer", "cannot read the added tokens", found=first_line(error)) from None


def added_words(tokenizers: Mapping[str, Files], but: Collection[str] = ()) -> list[str]:
    """Return the words that tokenizers have beside their byte-pair vocabularies, by id: those of textual inversions.

    Of word, word_1, word_2 ... the first stands for all. Special tokens that have a role are no words, nor are those in
    `but`, of which one such as "<s0><s1>" is several.
    """
    known = {START, END, *but, *(part for word in but for part in several(word))}
    words: dict[str, None] = {}
    for files in tokenizers.values():
        _, added = vocabulary(files)
        new = [word for word in sorted(added, key=lambda word, ids=added: ids[word]) if isinstance(word, str)]  # type: ignore[misc]
        more = {name for word in new for name in more_vectors(word, added)}
        others = {*known, *more, *_roles(files), *_byte_pairs(files)}
        words |= dict.fromkeys(word for word in new if word not in others)
    return list(words)


def more_vectors(word: str, added: Collection[str]) -> list[str]:
    """Return the added words that a word also stands for: by diffusers' convention word_1, word_2 and so on."""
    return list(itertools.takewhile(added.__contains__, (f"{word}_{i}" for i in itertools.count(1))))


def several(token: str) -> list[str]:
    """Split a token such as "<s0><s1>" into its words."""
    return re.findall(r"<[^<>\s]+>", token)


def read(files: Files, name: str) -> dict[str, Any]:
    """Read the JSON object in one of the files; an empty one where the file is missing."""
    return parse_json("tokenizer", name, files.get(name, b"{}"))


def _byte_pairs(files: Files) -> dict[str, Any]:
    """Return the byte-pair vocabulary, without the words that were added to it."""
    model = read(files, "tokenizer.json").get("model")
    words = read(files, "vocab.json") or (model.get("vocab") if isinstance(model, dict) else None)
    if not words or not isinstance(words, dict):
        raise LdmrtError("tokenizer", "missing files", expected="vocab.json and merges.txt, or tokenizer.json")
    return words


def _roles(files: Files) -> set[str]:
    """Return the tokens that begin, end or pad a text, or stand for an unknown one."""
    configs = (read(files, name) for name in ("special_tokens_map.json", "tokenizer_config.json"))
    notes = (config.get(role) for config in configs for role in ROLES)
    return {str(note.get("content") if isinstance(note, dict) else note) for note in notes}
