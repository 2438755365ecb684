"""Ids are those of transformers' CLIPTokenizer; what does not fit is said."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldmrt.runtime import LdmrtError, LdmrtWarning
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

TEXTS = [
    "", " ", "\t\n  ", "a red apple, noto style, blue background", "A RED Apple", "it's they're I'll we've he'd n't",
    "2 pears, 12345 7.5%", "a  b\n\nc", "!!! ... ?!? ---", "<html> & [x] {y} \\ / |", "na\u00efve caf\u00e9",
    "cafe\u0301", "\u0130stanbul STRASSE \u00df", "\u7ea2\u82f9\u679c", "\u043a\u0440\u0430\u0441\u043d\u043e\u0435",
    "\u0645\u0631\u062d\u0628\u0627", "\U0001f34e", "a \U0001f468\u200d\U0001f469\u200d\U0001f467 b", "\u00bd \u2168",
    "\u00a0nbsp\u2003em", "zero\u200bwidth", "<|endoftext|>", "a<|startoftext|>b", "\ufb01 \u01c5", "\x00", "\ud55c",
]  # fmt: skip


@pytest.fixture(scope="module")
def files(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (bundle / "tokenizer").iterdir()}


@pytest.fixture(scope="module")
def tokenizer(files: dict[str, bytes]) -> Tokenizer:
    return Tokenizer(files)


def quiet(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LdmrtWarning)
        return tokenizer(texts).tolist()


@pytest.mark.oracle
@pytest.mark.parametrize("left_out", ["tokenizer.json", "vocab.json merges.txt", ""])
def test_ids_are_those_of_transformers(
    files: dict[str, bytes], tokenizer: Tokenizer, left_out: str, tmp_path: Path
) -> None:
    from transformers import CLIPTokenizer

    for name, content in files.items():
        if name not in left_out:  # without tokenizer.json, transformers builds the pipeline itself
            (tmp_path / name).write_bytes(content)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    fixed = {"padding": "max_length", "truncation": True, "max_length": tokenizer.length}
    for text in TEXTS:
        assert quiet(tokenizer, [text])[0] == theirs(text, **fixed).input_ids, repr(text)

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(st.text(max_size=12))
    def any_text(text: str) -> None:
        assert quiet(tokenizer, [text])[0] == theirs(text, **fixed).input_ids

    any_text()


def test_shape_of_a_row(tokenizer: Tokenizer) -> None:
    ids = tokenizer(["", "two pears"])
    assert ids.shape == (2, 16)
    assert ids.dtype == np.int64
    assert ids[0].tolist() == [tokenizer.start, *[tokenizer.end] * 15]  # CLIP pads with the end token
    assert ids[1, 0] == tokenizer.start
    words = ids[1].tolist().index(tokenizer.end)
    assert 2 < words < 16
    assert ids.max() < tokenizer.size


def test_row_does_not_depend_on_its_batch(tokenizer: Tokenizer) -> None:
    assert quiet(tokenizer, TEXTS) == [quiet(tokenizer, [text])[0] for text in TEXTS]


def test_what_does_not_fit_is_said(tokenizer: Tokenizer) -> None:
    fits = "a red apple"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer([fits])
    long = f"{fits} " * 8 + "under the last umbrella"
    with pytest.warns(
        LdmrtWarning, match=r"prompt has \d+ tokens, 14 fit; skipped: '.*under the last umbrella'"
    ) as told:
        ids = tokenizer([long, fits])
    assert len(told) == 1
    assert ids[0, 0] == tokenizer.start
    assert ids[0, -1] == tokenizer.end
    assert tokenizer.end not in ids[0, :-1]
    lost = str(told[0].message).partition("skipped: '")[2].rstrip("'")
    kept = long.removesuffix(lost)
    assert kept != long
    np.testing.assert_array_equal(tokenizer([kept])[0], ids[0])  # what is said to be lost, and no more, is lost


@pytest.mark.parametrize("left_out", [("tokenizer.json",), ("vocab.json", "merges.txt"), ("merges.txt",)])
def test_either_kind_of_file_gives_the_same_ids(
    files: dict[str, bytes], tokenizer: Tokenizer, left_out: tuple[str, ...]
) -> None:
    part = Tokenizer({name: content for name, content in files.items() if name not in left_out})
    assert quiet(part, TEXTS) == quiet(tokenizer, TEXTS)
    assert (part.size, part.length, part.pad) == (tokenizer.size, tokenizer.length, tokenizer.pad)


@pytest.mark.parametrize("pad", ["!", {"content": "!"}])
def test_padding_is_what_the_configs_say(files: dict[str, bytes], pad: Any) -> None:
    config = {**json.loads(files["tokenizer_config.json"]), "pad_token": pad}
    ids = Tokenizer({**files, "tokenizer_config.json": json.dumps(config).encode()})([""])
    assert set(ids[0, 2:]) == {json.loads(files["vocab.json"])["!"]}
    ids = Tokenizer({**files, "special_tokens_map.json": json.dumps({"pad_token": pad}).encode()})([""])
    assert set(ids[0, 2:]) == {json.loads(files["vocab.json"])["!"]}


def without_end(vocab: bytes) -> bytes:
    return json.dumps({token: i for token, i in json.loads(vocab).items() if "endoftext" not in token}).encode()


def test_length_that_nobody_set_is_clips(files: dict[str, bytes]) -> None:
    unset = {**files, "tokenizer_config.json": b'{"model_max_length": 1000000000000000019884624838656}'}
    assert Tokenizer(unset).length == 77


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab.json": None, "tokenizer.json": None}, "cannot read the vocabulary"),
        ({"merges.txt": None, "tokenizer.json": None}, "cannot read the vocabulary"),
        ({"vocab.json": b'{"a": 1'}, "cannot read the vocabulary"),
        ({"vocab.json": b"[]"}, "cannot read the vocabulary"),
        ({"vocab.json": b'{"a": "b"}'}, "cannot read the vocabulary"),
        ({"merges.txt": b"qq xx\n"}, "cannot read the vocabulary"),  # pieces that the vocabulary lacks
        ({"merges.txt": b"\xff\xfe"}, "cannot read the vocabulary"),
        ({"merges.txt": None, "tokenizer.json": b"{}"}, "cannot read the vocabulary"),
        ({"tokenizer_config.json": b"{"}, "cannot read tokenizer_config.json"),
        ({"tokenizer_config.json": b"3"}, "cannot read tokenizer_config.json"),
        ({"tokenizer_config.json": b'{"pad_token": "<pad>"}'}, "no token '<pad>' in the vocabulary"),
        pytest.param({"tokenizer_config.json": b'{"model_max_length": "x"}'}, "model_max_length"),
        pytest.param({"tokenizer_config.json": b'{"model_max_length": 1}'}, "model_max_length"),
        pytest.param({"vocab.json": without_end}, "no token '<|endoftext|>' in the vocabulary"),
    ],
)  # fmt: skip
def test_damaged_files(files: dict[str, bytes], change: dict[str, Any], words: str) -> None:
    damaged = {name: value(files[name]) if callable(value) else value for name, value in change.items()}
    with pytest.raises(LdmrtError) as raised:
        Tokenizer({name: content for name, content in {**files, **damaged}.items() if content is not None})(["a"])
    assert raised.value.where == "tokenizer"
    assert words in str(raised.value)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(LdmrtError, match="tokenizer: missing folder"):
        Tokenizer.open(tmp_path / "tokenizer")


def test_text_that_is_not_unicode(tokenizer: Tokenizer) -> None:
    with pytest.raises(LdmrtError, match="tokenizer"):
        tokenizer(["\udcff"])  # what a shell's broken UTF-8 becomes


def _noted(content: str, normalized: bool) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}


@pytest.mark.oracle
@pytest.mark.parametrize("listed", [None, True, False])
@pytest.mark.parametrize("noted", ["text", True, False, None])
@pytest.mark.parametrize("mapped", ["text", True, False, None])
def test_special_tokens_are_read_in_any_case_where_transformers_reads_them(
    listed: bool | None, noted: Any, mapped: Any, files: dict[str, bytes], tmp_path: Path
) -> None:
    """The hub's folders note them as normalised, in one of three places."""
    from transformers import CLIPTokenizer

    start, end = "<|startoftext|>", "<|endoftext|>"
    vocabulary = json.loads(files["vocab.json"])
    content = {name: files[name] for name in ("vocab.json", "merges.txt")}
    config: dict[str, Any] = {"model_max_length": 24, "pad_token": end}
    roles = (("bos_token", start), ("eos_token", end), ("unk_token", end))
    if noted is not None:
        typed = {"__type": "AddedToken"}
        config |= {role: token if noted == "text" else {**typed, **_noted(token, noted)} for role, token in roles}
    if listed is not None:
        entries = {str(vocabulary[token]): {**_noted(token, listed), "special": True} for token in (start, end)}
        config["added_tokens_decoder"] = entries
    if mapped is not None:
        special = {role: token if mapped == "text" else _noted(token, mapped) for role, token in roles}
        content["special_tokens_map.json"] = json.dumps({**special, "pad_token": end}).encode()
    content["tokenizer_config.json"] = json.dumps(config).encode()
    for name, value in content.items():
        (tmp_path / name).write_bytes(value)
    theirs, ours = CLIPTokenizer.from_pretrained(tmp_path), Tokenizer(content)
    for text in ("x<|STARTOFTEXT|>y", "a <|EndOfText|> b", "<|endoftext|>"):
        expected = theirs(text, padding="max_length", truncation=True, max_length=24).input_ids
        assert quiet(ours, [text])[0] == expected, text
