"""Build T5's tokenizer: SentencePiece's unigram model (Raffel et al. 2020, section 2.2; Kudo 2018, arXiv:1804.10959).

A folder holds it as tokenizer.json, or as the file of SentencePiece alone, spiece.model: a message of protocol buffers,
of which three fields are read.
"""

import struct
from collections.abc import Iterator
from typing import Any

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.optional import unavailable

from .vocabulary import SENTENCEPIECE, T5_END, T5_PAD, Files

EXTRA_IDS = 100  # sentinels of T5's training, which every folder of it has behind the pieces
UNIGRAM = 1  # SentencePiece's number for this kind of model
UNKNOWN = 2  # the id of <unk>, as of <pad> is 0 and of </s> 1
SPACE = "\u2581"
# Fields of SentencePiece's messages, by their numbers in sentencepiece_model.proto.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE, SCORE, MODEL_TYPE, CHARACTERS = 1, 2, 3, 2


def t5_unigram(files: Files) -> Any:
    """Build the tokenizer that transformers' T5Tokenizer builds, which puts </s> behind a text.

    Args:
        files: The files of a tokenizer's folder by name: tokenizer.json or spiece.model.

    Raises:
        LdmrtError: A file is missing or damaged, a special token is not in the vocabulary, or the package tokenizers
            is missing.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise unavailable(error, "tokenizer") from None
    try:
        if "tokenizer.json" in files:
            backend: Any = Tokenizer.from_str(files["tokenizer.json"].decode())
        else:
            backend = _of_sentencepiece(files[SENTENCEPIECE])
    except Exception as error:  # tokenizers raises bare Exception
        expected = f"tokenizer.json or {SENTENCEPIECE}, of a unigram model"
        raise LdmrtError(
            "tokenizer", "cannot read the vocabulary", expected=expected, found=first_line(error)
        ) from None
    for token in (T5_PAD, T5_END):
        if backend.token_to_id(token) is None:
            raise LdmrtError("tokenizer", f"no token {token!r} in the vocabulary")
    return backend


def pieces_of(content: bytes) -> list[tuple[str, float]]:
    """Return the pieces in a file of SentencePiece with their log-probabilities, then T5's sentinels.

    Raises:
        ValueError: The file is damaged, or of another kind of model.
    """
    message = list(_fields(content))
    kinds = [value for number, trainer in message if number == TRAINER for value in _all(trainer, MODEL_TYPE)]
    if kinds not in ([], [UNIGRAM]):  # absent where it is the usual one
        raise ValueError("SentencePiece's model is not a unigram model")
    pieces = []
    for number, value in message:
        if number == PIECES:
            (piece,), scores = _all(value, PIECE), _all(value, SCORE)
            pieces.append((piece.decode(), struct.unpack("<f", scores[0])[0] if scores else 0.0))
    if not pieces:
        raise ValueError("SentencePiece's model has no pieces")
    return pieces + [(f"<extra_id_{i}>", 0.0) for i in reversed(range(EXTRA_IDS))]


def _of_sentencepiece(content: bytes) -> Any:
    """Build the tokenizer of a file of SentencePiece: characters normalised, words, pieces of words."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    pieces = pieces_of(content)
    backend: Any = Tokenizer(models.Unigram(pieces, UNKNOWN, False))
    characters = [
        table
        for number, normalizer in _fields(content)
        if number == NORMALIZER
        for table in _all(normalizer, CHARACTERS)
    ]
    if characters and characters[0]:
        backend.normalizer = normalizers.Precompiled(characters[0])
    words = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    backend.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always", split=True)
    special = [T5_PAD, T5_END, pieces[UNKNOWN][0], *(piece for piece, _ in pieces[-EXTRA_IDS:])]
    backend.add_special_tokens(special)
    end = [(T5_END, backend.token_to_id(T5_END) or 0)]
    backend.post_processor = processors.TemplateProcessing(single=["$A", T5_END], special_tokens=end)
    return backend


def _all(message: Any, number: int) -> list[Any]:
    """Return the values of one field of a message."""
    return [value for found, value in _fields(message) if found == number]


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field of a message: whole numbers, and bytes of any other kind.

    Raises:
        ValueError: The message is damaged.
    """
    at = 0
    while at < len(message):
        key, at = _whole(message, at)
        kind = key & 7
        value: Any
        if kind == 0:
            value, at = _whole(message, at)
        elif kind in (1, 2, 5):
            size, at = (8 if kind == 1 else 4, at) if kind != 2 else _whole(message, at)
            value, at = message[at : at + size], at + size
            if at > len(message):
                raise ValueError("SentencePiece's model is cut off")
        else:
            raise ValueError("SentencePiece's model is damaged")
        yield key >> 3, value


def _whole(message: bytes, at: int) -> tuple[int, int]:
    """Read a whole number of seven bits a byte, the lowest first; return it and the place behind it."""
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("SentencePiece's model is damaged")
        byte, at = message[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
