"""T5's tokenizer gives the ids of transformers' T5Tokenizer, of tokenizer.json and of spiece.model alike."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tokenizer.tokenizer import ANY_LENGTH, Tokenizer
from ldmrt.runtime.tokenizer.unigram import pieces_of
from ldmrt.runtime.tokenizer.vocabulary import tokenizer_class

from ...support.families.stable_diffusion_3 import sentencepiece_file

ODD = [
    "", " ", "a red apple", " two   pears! ", "naïve café ﬁlm ① ２ Å 猫", "<pad> </s> <extra_id_3> x", "<unk>",
    "A" * 300, "ünïcode\tand\nnew lines", "\u3000wide", "\U0001f43c panda", "a\u0301 e\u0308", "\u200bzero width",
    "1,000.50", "word " * 300,
]  # fmt: skip
ALPHABET = "abcdefgh ABC  .,!-é猫①\u3000<>/_▁0123456789\n\t"


def texts() -> list[str]:
    """Return 200 odd texts."""
    rng = np.random.default_rng(0)
    drawn = ["".join(rng.choice(list(ALPHABET), rng.integers(1, 60))) for _ in range(200 - len(ODD))]
    return [*ODD, *drawn]


@pytest.fixture(scope="module")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spiece")
    (folder / "spiece.model").write_bytes(sentencepiece_file())
    return folder


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["spiece.model", "tokenizer.json"])
def test_ids_are_those_of_transformers(kind: str, spiece: Path, tmp_path: Path) -> None:
    from transformers import T5TokenizerFast

    reference = T5TokenizerFast.from_pretrained(spiece)
    folder = spiece
    if kind == "tokenizer.json":
        folder = tmp_path
        reference.save_pretrained(folder)
        (folder / "spiece.model").unlink(missing_ok=True)
    expected = reference(texts(), padding="max_length", max_length=ANY_LENGTH, truncation=True).input_ids
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "tokenizer: prompt has .* tokens, 255 fit")
        found = Tokenizer.open(folder)(texts())
    np.testing.assert_array_equal(found, np.array(expected))


@pytest.mark.oracle
def test_pieces_are_those_that_sentencepiece_reads() -> None:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_file())
    expected = [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]
    found = pieces_of(sentencepiece_file())
    assert found[: len(expected)] == expected
    assert [piece for piece, _ in found[len(expected) :]] == [f"<extra_id_{i}>" for i in range(99, -1, -1)]


def test_names_the_class(spiece: Path) -> None:
    assert tokenizer_class({"spiece.model": b""}) == "T5TokenizerFast"
    assert Tokenizer.open(spiece).length == ANY_LENGTH


@pytest.mark.parametrize(
    "content",
    [b"", b"\x0a", b"\x0a\xff\xff\xff", b"\xff" * 40, b"\x0b", sentencepiece_file()[:500], b"\x12\x02\x18\x02"],
    ids=["empty", "no size", "too long", "endless number", "unknown kind", "cut off", "byte pairs"],
)
def test_refuses_a_damaged_file(content: bytes) -> None:
    with pytest.raises(LdmrtError, match="cannot read the vocabulary"):
        Tokenizer({"spiece.model": content})
