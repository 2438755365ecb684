"""The trained vocabulary: in CLIP's order, and read by transformers' CLIPTokenizer to the same ids."""

import json
import warnings
from pathlib import Path

import pytest
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ldmrt.model.training.tasks.tokenizer import train_tokenizer
from ldmrt.runtime import LdmrtError, LdmrtWarning
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer
from ldmrt.runtime.tokenizer.vocabulary import END, START

CAPTIONS = [
    "a red apple, noto style, blue background",
    "two penguins and a penguin on a yellow background",
    "a man’s shoe: number 12, small, in the bottom left",
] * 3
TEXTS = [
    *CAPTIONS[:3],
    "",
    " ",
    "A RED  Apple\n,noto\tstyle",
    "it's the penguins' 2024 don't we'll",
    "unseen wörds Ünïcode ﬁ 日本語 🍎🐧",
    "e\u0301 \u00e9",  # one letter, written in two ways
    "a<|endoftext|>b <|startoftext|>",
    "!!! ?? ...,;:-_/\\ #$%&*()",
    "x" * 40,
    "\u00a0no\u2003break",
]
LENGTH = 24


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return train_tokenizer(CAPTIONS, entries=600, length=LENGTH)


def test_vocabulary_is_in_the_order_of_clip(files: dict[str, bytes]) -> None:
    vocab = json.loads(files["vocab.json"])
    merges = [line for line in files["merges.txt"].decode().splitlines() if not line.startswith("#")]
    symbols = list(bytes_to_unicode().values())
    assert len(symbols) == 256
    expected = [*symbols, *(symbol + "</w>" for symbol in symbols), *dict.fromkeys(m.replace(" ", "") for m in merges)]
    assert list(vocab) == [*expected, START, END]
    assert list(vocab.values()) == list(range(len(vocab)))
    assert len(merges) > 50
    assert "background</w>" in vocab
    assert json.loads(files["tokenizer.json"])["model"]["vocab"] == vocab


@pytest.mark.parametrize("entries", [515, 560])
def test_vocabulary_has_as_many_entries_as_asked_for(entries: int) -> None:
    assert len(json.loads(train_tokenizer(CAPTIONS, entries=entries, length=8)["vocab.json"])) == entries


def test_fewer_entries_than_bytes_is_one_error() -> None:
    with pytest.raises(LdmrtError, match="514"):
        train_tokenizer(CAPTIONS, entries=513, length=8)


@pytest.mark.parametrize(
    "left_out", [(), ("tokenizer.json",), ("vocab.json", "merges.txt")], ids=["whole", "old files", "new file"]
)
def test_folder_gives_the_same_ids_in_transformers(
    left_out: tuple[str, ...], files: dict[str, bytes], tmp_path: Path
) -> None:
    kept = {name: content for name, content in files.items() if name not in left_out}
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer(kept)
    assert (ours.size, ours.length) == (len(theirs), theirs.model_max_length)
    assert (ours.start, ours.end, ours.pad) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LdmrtWarning)  # two texts are too long
        found = ours(TEXTS).tolist()
    assert found == theirs(TEXTS, padding="max_length", truncation=True).input_ids
    assert len({tuple(row) for row in found}) >= len(TEXTS) - 1  # only "" and " " are alike
    assert max(max(row) for row in found) == ours.end
