"""The words that a tokenizer's files add to its vocabulary, in the ways that diffusers and transformers write them."""

import json
from typing import Any

import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.tokenizer.vocabulary import END, START, added_words

BYTE_PAIRS = {"a": 0, "!": 1, START: 2, END: 3}
CONFIG = {"bos_token": {"content": START}, "unk_token": END, "pad_token": "!"}


def entry(content: str, **more: Any) -> dict[str, Any]:
    return {"content": content, "special": False, **more}


DECODER = {"1": entry("!"), "2": entry(START, special=True), "4": entry("<cat>"), "5": entry("<cat>_1")}
WAYS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "none": ({"vocab.json": BYTE_PAIRS, "tokenizer_config.json": CONFIG}, []),
    "added_tokens.json": (
        {"vocab.json": BYTE_PAIRS, "added_tokens.json": {"<dog>": 5, "<cat>": 4}}, ["<cat>", "<dog>"]),
    "a list in the config": (
        {"vocab.json": BYTE_PAIRS, "tokenizer_config.json": CONFIG | {"added_tokens_decoder": DECODER}}, ["<cat>"]),
    "one file for all": (
        {"tokenizer.json": {"model": {"vocab": BYTE_PAIRS},
                            "added_tokens": [entry(END, id=3), entry("<s0>", id=4, special=True)]}}, ["<s0>"]),
    "a token that pads": (
        {"vocab.json": BYTE_PAIRS, "special_tokens_map.json": {"pad_token": {"content": "<pad>"}},
         "added_tokens.json": {"<pad>": 4, "<cat>": 5}}, ["<cat>"]),
    "in all of them": (
        {"vocab.json": BYTE_PAIRS, "tokenizer.json": {"added_tokens": [entry("<cat>", id=4)]},
         "added_tokens.json": {"<cat>": 4, "<cat>_1": 5, "<cat>_3": 6}}, ["<cat>", "<cat>_3"]),
}  # fmt: skip


def files(content: dict[str, Any]) -> dict[str, bytes]:
    return {name: json.dumps(value).encode() for name, value in content.items()}


@pytest.mark.parametrize("name", list(WAYS))
def test_words_that_are_added(name: str) -> None:
    content, words = WAYS[name]
    assert added_words({"tokenizer": files(content)}) == words
    assert added_words({"tokenizer": files(content), "tokenizer_2": files(content)}) == words


def test_words_of_either_tokenizer_but_those_that_are_known() -> None:
    first = {"vocab.json": BYTE_PAIRS, "added_tokens.json": {"<s0>": 4, "<s1>": 5, "pear": 6}}
    second = {"vocab.json": BYTE_PAIRS, "added_tokens.json": {"pear": 4, "fig": 5}}
    both = {"tokenizer": files(first), "tokenizer_2": files(second)}
    assert added_words(both) == ["<s0>", "<s1>", "pear", "fig"]
    assert added_words(both, ["<s0><s1>", "fig"]) == ["pear"]


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"vocab.json": []},
        {"tokenizer.json": {"model": []}},
        {"vocab.json": BYTE_PAIRS, "tokenizer.json": {"added_tokens": [{"id": 4}]}},
        {"vocab.json": BYTE_PAIRS, "tokenizer_config.json": {"added_tokens_decoder": [1]}},
        {"vocab.json": BYTE_PAIRS, "added_tokens.json": {"<cat>": float("inf")}},
        {"vocab.json": BYTE_PAIRS, "tokenizer.json": {"added_tokens": [{"content": {}, "id": 4}]}},
    ],
)
def test_damaged_files_are_one_error(content: dict[str, Any]) -> None:
    with pytest.raises(LdmrtError, match=r"tokenizer: (cannot read|missing files)"):
        added_words({"tokenizer": files(content)})
