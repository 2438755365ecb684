"""Gemma's tokenizer gives the ids of transformers' GemmaTokenizer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer
from ldmrt.runtime.tokenizer.vocabulary import added_words, tokenizer_class

from ...support.families.sana import gemma_tokenizer
from .test_unigram import texts

LENGTH = 40
CONFIG = "tokenizer_config.json"
pytestmark = pytest.mark.oracle  # transformers writes the tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gemma")
    gemma_tokenizer().save_pretrained(place)
    return place


def files(folder: Path, **config: Any) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**found, CONFIG: json.dumps({**json.loads(found[CONFIG]), **config}).encode()}


@pytest.mark.filterwarnings("ignore:tokenizer. prompt has .* tokens, 39 fit")
@pytest.mark.parametrize("config", [{}, {"add_bos_token": True, "add_eos_token": False}], ids=["plain", "hub"])
def test_ids_are_those_of_transformers(config: dict[str, bool], folder: Path) -> None:
    """Of odd texts, with the special tokens in them, and such as are cut."""
    from transformers import AutoTokenizer

    asked = [*texts(), "<bos> <eos> <mask> <0x41>", "two  spaces\n\nand lines"]
    reference = AutoTokenizer.from_pretrained(folder, padding_side="right")
    expected = reference(asked, padding="max_length", max_length=LENGTH, truncation=True).input_ids
    tokenizer = Tokenizer(files(folder, **config))
    np.testing.assert_array_equal(tokenizer(asked, LENGTH), np.array(expected))
    assert tokenizer.lengths(asked) == [len(reference.encode(text)) for text in asked]


def test_a_text_is_cut_without_an_end(folder: Path) -> None:
    """The warning counts neither the start nor what stands before a prompt."""
    tokenizer = Tokenizer(files(folder))
    whole = tokenizer(["a cat sleeping x y z"], LENGTH)[0]
    count = int((whole != tokenizer.pad).sum())
    with pytest.warns(UserWarning, match=rf"prompt has {count - 3} tokens, {count - 5} fit; skipped: "):
        cut = tokenizer(["a cat sleeping x y z"], count - 2, ahead=2)[0]
    np.testing.assert_array_equal(cut, whole[: count - 2])


def test_files_are_recognised(folder: Path) -> None:
    """By the class in their config, or without one by a vocabulary that falls back on bytes."""
    whole = files(folder)
    for found in (whole, {"tokenizer.json": whole["tokenizer.json"]}):
        assert tokenizer_class(found) == "GemmaTokenizerFast"
    assert added_words({"tokenizer": whole}) == []


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"pad_token": "<none>"}, "no token '<none>' in the vocabulary"),
        ({"add_bos_token": False}, "another token than the start around a text; expected <bos>; found none"),
        ({"add_bos_token": True, "add_eos_token": True}, "another token than the start .*; found <bos> <eos>"),
    ],
)
def test_refuses(config: dict[str, Any], problem: str, folder: Path) -> None:
    with pytest.raises(LdmrtError, match=problem):
        Tokenizer(files(folder, **config))


def test_refuses_a_damaged_vocabulary(folder: Path) -> None:
    with pytest.raises(LdmrtError, match=r"cannot read the vocabulary; expected tokenizer.json, of byte pairs"):
        Tokenizer({**files(folder), "tokenizer.json": b'{"model": {}}'})
