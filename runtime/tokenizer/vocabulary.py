"""Read the words of a tokenizer from its files, and those that were added to its vocabulary."""

import itertools
import re
from collections.abc import Collection, Mapping
from typing import Any

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.reading import parse_json

START, END = "<|startoftext|>", "<|endoftext|>"
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
ADDED = "added_tokens.json"
PIECES = "vocab.txt"  # WordPiece's vocabulary, one token a line
SENTENCEPIECE = "spiece.model"  # T5's vocabulary, as SentencePiece wrote it
T5_END, T5_PAD, SENTINEL = "</s>", "<pad>", "<extra_id_"  # T5's own, which are no words
GEMMA_ROLES = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}  # the usual tokens
QWEN_ROLES = {"pad_token": "<|endoftext|>"}
CLASSES = ("Bert", "CLIP", "T5", "Gemma", "Qwen2")  # what the names of tokenizers' classes begin with
MOST_PIECES = 1 << 20  # BERT has 30522, in all languages 119547
BERT_ROLES = {  # the usual tokens
    "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]",
}  # fmt: skip

Files = Mapping[str, bytes]


def is_wordpiece(files: Files) -> bool:
    """Tell the files of BERT's tokenizer from those of CLIP's."""
    kind = str(read(files, "tokenizer_config.json").get("tokenizer_class"))
    if kind.startswith(CLASSES):
        return kind.startswith("Bert")
    if "vocab.json" in files or PIECES in files:
        return "vocab.json" not in files
    model = read(files, "tokenizer.json").get("model")
    return isinstance(model, dict) and model.get("type") == "WordPiece"


def is_unigram(files: Files) -> bool:
    """Tell the files of T5's tokenizer from those of the others."""
    kind = str(read(files, "tokenizer_config.json").get("tokenizer_class"))
    if kind.startswith(CLASSES):
        return kind.startswith("T5")
    model = read(files, "tokenizer.json").get("model")
    return SENTENCEPIECE in files or (isinstance(model, dict) and model.get("type") == "Unigram")


def is_gemma(files: Files) -> bool:
    """Tell the files of Gemma's tokenizer from those of the others: byte pairs that fall back on single bytes."""
    kind = str(read(files, "tokenizer_config.json").get("tokenizer_class"))
    if kind.startswith(CLASSES) or not {"vocab.json", PIECES, SENTENCEPIECE}.isdisjoint(files):
        return kind.startswith("Gemma")
    model = read(files, "tokenizer.json").get("model")
    return isinstance(model, dict) and model.get("type") == "BPE" and model.get("byte_fallback") is True


def is_qwen(files: Files) -> bool:
    """Tell the files of Qwen2's tokenizer from those of the others: byte pairs that do not mark the end of a word."""
    kind = str(read(files, "tokenizer_config.json").get("tokenizer_class"))
    if kind.startswith(CLASSES) or not {"vocab.json", PIECES, SENTENCEPIECE}.isdisjoint(files):
        return kind.startswith("Qwen2")
    model = read(files, "tokenizer.json").get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or model.get("byte_fallback"):
        return False
    return model.get("end_of_word_suffix", END) in (None, "")


def reads_any_length(files: Files) -> bool:
    """Tell a tokenizer of a text encoder with relative positions: it has no length of its own."""
    return is_unigram(files) or is_gemma(files) or is_qwen(files)


def tokenizer_class(files: Files) -> str:
    """Return the name of the class in transformers that reads these files."""
    if is_unigram(files):
        return "T5TokenizerFast"
    if is_gemma(files):
        return "GemmaTokenizerFast"
    if is_qwen(files):
        return "Qwen2Tokenizer"
    return "BertTokenizer" if is_wordpiece(files) else "CLIPTokenizer"


def word_pieces(files: Files) -> dict[str, int]:
    """Return WordPiece's vocabulary: each token with its id, its line in vocab.txt counted from 0.

    Raises:
        LdmrtError: The file is missing, not UTF-8 or too long, or a token or an id is there twice.
    """
    if PIECES in files:
        tokens = _lines(files[PIECES])
        ids = {token: i for i, token in enumerate(tokens)}
        if twice := next((token for i, token in enumerate(tokens) if ids[token] != i), None):
            raise LdmrtError("tokenizer", f"{PIECES} holds one token twice", found=repr(twice))
        return ids
    model = read(files, "tokenizer.json").get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or not vocab:
        raise LdmrtError("tokenizer", "missing files", expected=f"{PIECES} or tokenizer.json")
    if not all(type(i) is int for i in vocab.values()) or sorted(vocab.values()) != list(range(len(vocab))):
        expected = f"the ids 0 to {len(vocab) - 1}, each once"
        raise LdmrtError("tokenizer", "cannot read the vocabulary", expected=expected)
    return dict(vocab)


def byte_pairs(files: Files) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return the tokens of vocab.json with their ids, and the pairs of merges.txt in their order.

    Raises:
        LdmrtError: vocab.json is no JSON object.
        ValueError: A line is no pair, or a file is not UTF-8.
    """
    pairs = []
    for line in files["merges.txt"].decode().splitlines():
        if line and not line.startswith("#version"):
            left, right = line.split()
            pairs.append((left, right))
    return parse_json("tokenizer", "vocab.json", files["vocab.json"]), pairs


def unigram_pieces(files: Files) -> dict[str, int]:
    """Return the pieces of T5's tokenizer.json, each with its id; none where SentencePiece's file alone is there.

    Raises:
        LdmrtError: The list of pieces is damaged.
    """
    model = read(files, "tokenizer.json").get("model")
    pieces = model.get("vocab", []) if isinstance(model, dict) else []
    try:
        return {str(piece): i for i, (piece, _) in enumerate(pieces)}
    except (TypeError, ValueError) as error:
        raise LdmrtError("tokenizer", "cannot read the vocabulary", found=first_line(error)) from None


def special_tokens(files: Files, roles: Mapping[str, str]) -> dict[str, str]:
    """Return the special tokens of a tokenizer by their roles: as its configs name them, else the usual ones."""
    configs = [read(files, name) for name in ("special_tokens_map.json", "tokenizer_config.json")]
    notes = {role: next((c[role] for c in configs if c.get(role)), usual) for role, usual in roles.items()}
    return {role: str(note.get("content") if isinstance(note, dict) else note) for role, note in notes.items()}


def vocabulary(files: Files) -> tuple[dict[str, int], dict[str, int]]:
    """Return every word of a tokenizer with its id, and separately those added to its vocabulary."""
    whole, config = (read(files, name) for name in ("tokenizer.json", "tokenizer_config.json"))
    words = _base_words(files)
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
    """Return the words that tokenizers have beside their vocabularies, by id: those of textual inversions.

    Of word, word_1, word_2 ... the first stands for all. Special tokens that have a role are no words, nor are those in
    `but`, of which one such as "<s0><s1>" is several.
    """
    known = {START, END, *but, *(part for word in but for part in several(word))}
    words: dict[str, None] = {}
    for files in tokenizers.values():
        if is_qwen(files):  # whose added tokens are marks of chats
            continue
        _, added = vocabulary(files)
        new = [word for word in sorted(added, key=lambda word, ids=added: ids[word]) if isinstance(word, str)]  # type: ignore[misc]
        more = {name for word in new for name in more_vectors(word, added)}
        others = {*known, *more, *_roles(files), *_base_words(files)}
        words |= dict.fromkeys(word for word in new if word not in others and not word.startswith(SENTINEL))
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


def _lines(content: bytes) -> list[str]:
    """Split a vocabulary file at line feeds alone, as transformers does: other breaks may be tokens."""
    if (count := content.count(b"\n")) > MOST_PIECES:
        raise LdmrtError("tokenizer", f"{PIECES} is too long", expected=f"at most {MOST_PIECES} tokens", found=count)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise LdmrtError("tokenizer", f"cannot read {PIECES}", expected="UTF-8", found=first_line(error)) from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def _base_words(files: Files) -> dict[str, Any]:
    """Return the byte pairs or the word pieces of a vocabulary, without the words that were added to it."""
    if is_unigram(files):
        return unigram_pieces(files)
    if is_wordpiece(files):
        return word_pieces(files)
    model = read(files, "tokenizer.json").get("model")
    words = read(files, "vocab.json") or (model.get("vocab") if isinstance(model, dict) else None)
    if not words or not isinstance(words, dict):
        raise LdmrtError("tokenizer", "missing files", expected="vocab.json and merges.txt, or tokenizer.json")
    return words


def _roles(files: Files) -> set[str]:
    """Return the tokens that begin, end or pad a text, or stand for an unknown one."""
    configs = (read(files, name) for name in ("special_tokens_map.json", "tokenizer_config.json"))
    notes = (config.get(role) for config in configs for role in (*ROLES, *BERT_ROLES))
    return {str(note.get("content") if isinstance(note, dict) else note) for note in notes}
