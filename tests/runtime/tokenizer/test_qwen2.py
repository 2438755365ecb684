"""Qwen2's tokenizer gives the ids of transformers' Qwen2Tokenizer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer
from ldmrt.runtime.tokenizer.vocabulary import added_words, tokenizer_class

from ...support.families.z_image import qwen_tokenizer
from .test_unigram import texts

LENGTH = 40
CONFIG = "tokenizer_config.json"
ASKED = [*texts(), "<|im_start|>user\nit's 2026<|im_end|>\n<|endoftext|>", "two  spaces\n\nand\tlines ", "e\u0301"]
pytestmark = pytest.mark.oracle  # transformers writes the tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("qwen2")
    qwen_tokenizer().save_pretrained(place)
    return place


def files(folder: Path, **config: Any) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**found, CONFIG: json.dumps({**json.loads(found[CONFIG]), **config}).encode()}


def apart(whole: dict[str, bytes]) -> dict[str, bytes]:
    """The files of older folders: vocab.json, merges.txt and a config that lists the added tokens."""
    tokenizer = json.loads(whole["tokenizer.json"])
    model, added = tokenizer["model"], {str(entry["id"]): entry for entry in tokenizer["added_tokens"]}
    vocab = {word: number for word, number in model["vocab"].items() if str(number) not in added}
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])])
    config = {**json.loads(whole[CONFIG]), "added_tokens_decoder": added}
    return {
        "vocab.json": json.dumps(vocab).encode(), "merges.txt": merges.encode(), CONFIG: json.dumps(config).encode()
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:tokenizer. prompt has .* tokens, 40 fit")
@pytest.mark.parametrize("how", [files, lambda folder: apart(files(folder))], ids=["one file", "vocabulary and merges"])
def test_ids_are_those_of_transformers(how: Any, folder: Path) -> None:
    """Of odd texts, with the special tokens in them, and such as are cut."""
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(folder, padding_side="right")
    expected = reference(ASKED, padding="max_length", max_length=LENGTH, truncation=True).input_ids
    tokenizer = Tokenizer(how(folder))
    np.testing.assert_array_equal(tokenizer(ASKED, LENGTH), np.array(expected))
    assert tokenizer.lengths(ASKED) == [len(reference.encode(text)) for text in ASKED]


def test_a_chat_is_cut_at_its_end(folder: Path) -> None:
    """The warning counts none of the marks around the prompt."""
    tokenizer, before, behind = Tokenizer(files(folder)), "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    prompt = "a cat sleeping x y z"
    whole = tokenizer([before + prompt + behind], LENGTH)[0]
    around, own = (len(tokenizer.pieces(text)) for text in (before + behind, prompt))
    count = len(tokenizer.pieces(before)) + own - 2
    with pytest.warns(UserWarning, match=rf"prompt has {own} tokens, {count - around} fit; skipped: 'z'|' ?z'"):
        cut = tokenizer([before + prompt + behind], count, len(tokenizer.pieces(before)), behind)[0]
    np.testing.assert_array_equal(cut, whole[:count])


def test_files_are_recognised(folder: Path) -> None:
    """By the class in their config, or without one by byte pairs that do not mark the end of a word."""
    whole = files(folder)
    for found in (whole, {"tokenizer.json": whole["tokenizer.json"]}, apart(whole)):
        assert tokenizer_class(found) == "Qwen2Tokenizer"
    assert added_words({"tokenizer": whole}) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({CONFIG: b'{"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<none>"}'}, "no token '<none>' in the vocab"),
        ({"tokenizer.json": b'{"model": {}}'}, "cannot read the vocabulary; expected tokenizer.json, or vocab.json"),
    ],
)
def test_refuses(change: dict[str, bytes], problem: str, folder: Path) -> None:
    with pytest.raises(LdmrtError, match=problem):
        Tokenizer({**files(folder), **change})


def test_refuses_tokens_around_a_text(folder: Path) -> None:
    """As a template of transformers could add them."""
    whole = files(folder)
    content = json.loads(whole["tokenizer.json"])
    mark = {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}
    content["post_processor"]["single"].append(mark)
    number = next(entry["id"] for entry in content["added_tokens"] if entry["content"] == "<|im_end|>")
    content["post_processor"]["special_tokens"] = {
        "<|im_end|>": {"id": "<|im_end|>", "ids": [number], "tokens": ["<|im_end|>"]}
    }
    with pytest.raises(LdmrtError, match=r"another token than those of the text; .*; found <\|im_end\|>"):
        Tokenizer({**whole, "tokenizer.json": json.dumps(content).encode()})


def test_refuses_another_id_of_an_added_token(folder: Path) -> None:
    whole = apart(files(folder))
    config = json.loads(whole[CONFIG])
    config["added_tokens_decoder"] = {str(int(n) + 7): entry for n, entry in config["added_tokens_decoder"].items()}
    with pytest.raises(LdmrtError, match="invalid id of the added token"):
        Tokenizer({**whole, CONFIG: json.dumps(config).encode()})
