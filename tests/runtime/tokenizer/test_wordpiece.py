"""Ids are those of transformers' BertTokenizer, at the length that latent diffusion's pipeline asks for."""

import importlib
import itertools
import json
import string
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldmrt.runtime import LdmrtError, LdmrtWarning
from ldmrt.runtime.tokenizer import vocabulary
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer, token_count
from ldmrt.runtime.tokenizer.vocabulary import added_words, is_wordpiece, tokenizer_class, word_pieces

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*string.ascii_lowercase, *string.digits, *string.ascii_uppercase, "\u00e9", "\u0301", "\u03c3"]
WORDS = "red apple apples paint ing ##ing painting of the squirrel burg ##er s ##s t ##t Red APPLE".split()
WORDS += ["caf\u00e9", "\u732b"]
SIGNS = [*string.punctuation, "\u00bf", "\u2026", "\u3002"]
TOKENS = [*dict.fromkeys([*SPECIAL, *SIGNS, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS])]
VOCABULARY = "".join(f"{token}\n" for token in TOKENS).encode()
CONFIG = {
    "cls_token": "[CLS]", "do_basic_tokenize": True, "do_lower_case": True, "mask_token": "[MASK]",
    "model_max_length": 512, "never_split": None, "pad_token": "[PAD]", "sep_token": "[SEP]", "strip_accents": None,
    "tokenize_chinese_chars": True, "tokenizer_class": "BertTokenizer", "unk_token": "[UNK]",
}  # fmt: skip
FIXED = {"padding": "max_length", "truncation": True, "max_length": 77}
ODD = [
    "", " ", "\t\n  ", "a painting of a squirrel eating a burger", "A RED Apple, APPLES", "it's they're n't",
    "2 pears 7.5%", "!!! ... ?!? ---", "<html> & [x] {y} \\ / |", "na\u00efve caf\u00e9", "cafe\u0301",
    "\u0130stanbul STRASSE \u00df", "\u732b\u7d05\u3002", "\u043a\u0440\u0430\u0441\u043d\u043e\u0435",
    "\u0645\u0631\u062d\u0628\u0627", "\U0001f34e", "a \U0001f468\u200d\U0001f469\u200d\U0001f467 b", "\u00bd \u2168",
    "\u00a0nbsp\u2003em", "zero\u200bwidth", "\ufb01", "\x00a\x07b\x7f", "\ufffd", "a\r\nb\u2028c\u2029d", "\ud55c",
    "x" * 100, "x" * 101, "[SEP]", "a[MASK]b", "[sep] [Cls]", "[CLS] a [SEP] [PAD] [UNK]", "##ing",
    "\u03a3\u0391\u03a3 \u03c3", "\u0e44\u0e17\u0e22", "\u01c5", "\u0149", "\u0300\u0301", "re\u0301d", "RED" * 40,
]  # fmt: skip
JOINTS = ["", " ", "-", "\u00e9", "\u200b"]
TEXTS = [*ODD, *(a + joint + b for a, b in itertools.pairwise(ODD) for joint in JOINTS), " ".join(ODD)]


def folder(**change: Any) -> dict[str, bytes]:
    """The files of the hub's folder, with another value for keys of the config."""
    return {"vocab.txt": VOCABULARY, "tokenizer_config.json": json.dumps({**CONFIG, **change}).encode()}


def saved(files: dict[str, bytes], path: Path) -> Path:
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def quiet(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LdmrtWarning)
        return tokenizer(texts).tolist()


TYPED = {"__type": "AddedToken", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
OPTIONS: dict[str, dict[str, Any]] = {
    "as usual": {},
    "cased": {"do_lower_case": False},
    "cased without accents": {"do_lower_case": False, "strip_accents": True},
    "accents": {"strip_accents": False},
    "words of many ideographs": {"tokenize_chinese_chars": False},
    "other tokens": {"cls_token": "a", "sep_token": "!", "pad_token": {**TYPED, "content": "?"}, "unk_token": "the"},
    "as transformers notes no length": {"model_max_length": 10**30},
}


@pytest.mark.oracle
@pytest.mark.parametrize("option", OPTIONS)
def test_ids_are_those_of_transformers(option: str, tmp_path: Path) -> None:
    from transformers import BertTokenizerFast

    assert len(TEXTS) > 200
    files = folder(**OPTIONS[option])
    ours, theirs = Tokenizer(files), BertTokenizerFast.from_pretrained(saved(files, tmp_path))
    for text in TEXTS:
        assert quiet(ours, [text])[0] == theirs(text, **FIXED).input_ids, repr(text)

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(st.text(max_size=12))
    def any_text(text: str) -> None:
        assert quiet(ours, [text])[0] == theirs(text, **FIXED).input_ids

    any_text()


@pytest.mark.oracle
@pytest.mark.parametrize("words", [[], ["<pear>", "two words"]])
def test_folder_that_transformers_saves_gives_the_same_ids(words: list[str], tmp_path: Path) -> None:
    """Versions from 5 on write tokenizer.json and no vocab.txt."""
    from transformers import BertTokenizerFast

    theirs = BertTokenizerFast.from_pretrained(saved(folder(), tmp_path))
    theirs.add_tokens(words)
    theirs.save_pretrained(tmp_path / "saved")
    ours = Tokenizer.open(tmp_path / "saved")
    assert ours.size == len(theirs) == len(TOKENS) + len(words)
    files = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    assert added_words({"tokenizer": files}) == words
    for text in [*TEXTS, "a<pear>b two words", "<PEAR> Two Words"]:
        assert quiet(ours, [text])[0] == theirs(text, **FIXED).input_ids, repr(text)


@pytest.mark.oracle
def test_ids_are_those_of_the_slow_tokenizer_that_the_model_was_published_with(tmp_path: Path) -> None:
    """But for characters that Python's tables and the package's know differently, and sigma at a word's end."""
    legacy = importlib.import_module("transformers.models.bert.tokenization_bert_legacy")
    ours, theirs = Tokenizer(folder()), legacy.BertTokenizerLegacy.from_pretrained(saved(folder(), tmp_path))

    def alike(text: str) -> bool:
        known = unicodedata.ucd_3_2_0
        return all(known.category(character) != "Cn" and character != "\u03a3" for character in text)

    texts = [text for text in TEXTS if alike(text)]
    assert len(texts) > 150
    for text in texts:
        assert quiet(ours, [text])[0] == theirs(text, **FIXED).input_ids, repr(text)

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(st.text(max_size=12).filter(alike))
    def any_text(text: str) -> None:
        assert quiet(ours, [text])[0] == theirs(text, **FIXED).input_ids

    any_text()


def ids(*tokens: str) -> list[int]:
    return [TOKENS.index(token) for token in tokens]


def test_shape_of_a_row() -> None:
    tokenizer = Tokenizer(folder())
    rows = tokenizer(["", "Painting, painter"])
    assert rows.shape == (2, 77)
    assert rows.dtype == np.int64
    assert rows[0].tolist() == ids("[CLS]", "[SEP]") + [0] * 75
    pieces = ("painting", ",", "paint", "##er")  # the longest that fits
    assert rows[1].tolist() == ids("[CLS]", *pieces, "[SEP]") + [0] * 71
    assert [tokenizer.start, tokenizer.end, tokenizer.pad] == ids("[CLS]", "[SEP]", "[PAD]")
    assert tokenizer.size == len(TOKENS)


def test_row_does_not_depend_on_its_batch() -> None:
    tokenizer = Tokenizer(folder())
    assert quiet(tokenizer, TEXTS) == [quiet(tokenizer, [text])[0] for text in TEXTS]


def test_what_does_not_fit_is_said() -> None:
    tokenizer = Tokenizer(folder())
    fits = "the red apple"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer([fits])
    long = f"{fits} " * 25 + "of the Burg\u00e9r"
    with pytest.warns(LdmrtWarning, match="prompt has 79 tokens, 75 fit; skipped: 'of the Burg\u00e9r'") as told:
        rows = tokenizer([long, fits])
    assert len(told) == 1
    assert (rows[0, 0], rows[0, -1]) == (tokenizer.start, tokenizer.end)
    np.testing.assert_array_equal(tokenizer([f"{fits} " * 25])[0], rows[0])


@pytest.mark.parametrize(
    ("files", "bert"),
    [
        (folder(), True),
        ({"vocab.txt": VOCABULARY}, True),
        (folder(tokenizer_class="BertTokenizerFast"), True),
        (folder(tokenizer_class="PreTrainedTokenizerFast"), True),
        ({"tokenizer.json": b'{"model": {"type": "WordPiece"}}'}, True),
        ({"tokenizer.json": b'{"model": {"type": "BPE"}}'}, False),
        ({"vocab.txt": VOCABULARY, "vocab.json": b"{}"}, False),
        (folder(tokenizer_class="CLIPTokenizer"), False),
        ({}, False),
    ],
)
def test_files_tell_the_kind(files: dict[str, bytes], bert: bool) -> None:
    assert is_wordpiece(files) is bert
    assert tokenizer_class(files) == ("BertTokenizer" if bert else "CLIPTokenizer")


@pytest.mark.parametrize("stated", [16, 512, 10**30, "many"])
def test_length_is_latent_diffusions_whatever_the_config_says(stated: Any) -> None:
    files = folder(model_max_length=stated)
    assert token_count(files) == Tokenizer(files).length == 77


def test_vocabulary_file_is_split_at_line_feeds_alone() -> None:
    tokens = [*SPECIAL, "\u2028", "a\u0085b", ""]
    for end in ("\n", "\r\n", "\r"):
        assert list(word_pieces({"vocab.txt": end.join([*tokens, ""]).encode()})) == tokens


def without(token: str) -> bytes:
    return VOCABULARY.replace(f"{token}\n".encode(), b"", 1)


def whole(vocabulary: object) -> dict[str, bytes]:
    return {"tokenizer.json": json.dumps({"model": {"type": "WordPiece", "vocab": vocabulary}}).encode()}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer_config.json": folder()["tokenizer_config.json"]}, "missing files; expected vocab.txt or"),
        ({"vocab.txt": b""}, r"no token '\[CLS\]' in the vocabulary"),
        *(
            ({"vocab.txt": without(token)}, rf"no token '\[{token[1:-1]}\]' in the vocabulary")
            for token in SPECIAL[:4]
        ),
        (folder(sep_token="</s>"), "no token '</s>' in the vocabulary"),
        ({"vocab.txt": VOCABULARY + b"apple\n"}, "vocab.txt holds one token twice; found 'apple'"),
        ({"vocab.txt": VOCABULARY + b"\xff\n"}, "cannot read vocab.txt; expected UTF-8; found .*0xff"),
        ({"vocab.txt": VOCABULARY.decode().encode("utf-16")}, "cannot read vocab.txt; expected UTF-8"),
        ({"vocab.txt": VOCABULARY, "tokenizer_config.json": b"{"}, "cannot read tokenizer_config.json"),
        (folder(do_lower_case="yes"), "unsupported do_lower_case in tokenizer_config.json"),
        (folder(do_lower_case=1), "unsupported do_lower_case in tokenizer_config.json"),
        (folder(strip_accents=0), "unsupported strip_accents in tokenizer_config.json"),
        (folder(do_basic_tokenize=False), "unsupported do_basic_tokenize in tokenizer_config.json"),
        (folder(added_tokens_decoder={"7": {"content": "pear"}}), "invalid id of the added token 'pear'"),
        (folder(added_tokens_decoder=[3]), "cannot read the added tokens"),
        (whole([]), "missing files"),
        (whole({"[CLS]": 0, "a": "b"}), "cannot read the vocabulary; expected the ids 0 to 1"),
        (whole({"[CLS]": 0, "a": 2}), "cannot read the vocabulary; expected the ids 0 to 1"),
        (whole({"[CLS]": 0, "a": 0}), "cannot read the vocabulary; expected the ids 0 to 1"),
    ],
)  # fmt: skip
def test_damaged_files(files: dict[str, bytes], words: str) -> None:
    with pytest.raises(LdmrtError, match=f"^tokenizer: {words}") as raised:
        Tokenizer(files)
    assert len(str(raised.value)) < 400


def test_mask_is_needed_by_no_text() -> None:
    assert Tokenizer({"vocab.txt": without("[MASK]")}).size == len(TOKENS) - 1


def test_huge_vocabulary_is_refused_before_it_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "MOST_PIECES", len(TOKENS))
    Tokenizer(folder())
    monkeypatch.setattr(vocabulary, "MOST_PIECES", len(TOKENS) - 1)
    problem = f"vocab.txt is too long; expected at most {len(TOKENS) - 1} tokens; found {len(TOKENS)}"
    with pytest.raises(LdmrtError, match=f"^tokenizer: {problem}"):
        Tokenizer(folder())


def test_text_that_is_not_unicode() -> None:
    with pytest.raises(LdmrtError, match="tokenizer: a prompt is not text"):
        Tokenizer(folder())(["\udcff"])
