"""Turn text into ids, by the tokenizer of CLIP, BERT, T5, Gemma or Qwen2, from the files that transformers writes."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError, LdmrtWarning, first_line
from ldmrt.runtime.files.reading import parse_json
from ldmrt.runtime.optional import unavailable

from .gemma import gemma_byte_pairs
from .qwen2 import qwen_byte_pairs
from .unigram import t5_unigram
from .vocabulary import (
    END,
    ROLES,
    START,
    T5_END,
    T5_PAD,
    byte_pairs,
    is_gemma,
    is_qwen,
    is_unigram,
    is_wordpiece,
    more_vectors,
    reads_any_length,
    vocabulary,
)
from .wordpiece import bert_wordpiece

# Radford et al. 2021: contractions, words, single digits, runs of signs
PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLIP_LENGTH = 77
BERT_LENGTH = 77  # latent diffusion's, whatever a tokenizer's config says of BERT itself
ANY_LENGTH = (
    512  # by default, of T5, Gemma and Qwen2: the tokens of a prompt are a matter of the network that reads them
)


class Tokenizer:
    """Encodes texts as byte pairs or pieces of words, to a fixed length, with start and end tokens and padding.

    T5 has no start token, Gemma no end, and Qwen2 neither.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """Read a tokenizer.

        Args:
            files: The files of a tokenizer folder by name. CLIP's: vocab.json and merges.txt, or tokenizer.json, and
                configs. BERT's: vocab.txt or tokenizer.json, and configs. T5's: tokenizer.json or spiece.model.
                Gemma's: tokenizer.json, and configs. Qwen2's: the same, or vocab.json and merges.txt, and configs.

        Raises:
            LdmrtError: A file is missing or damaged, or the package tokenizers is missing.
        """
        config, special = (_json(files, name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
        if is_unigram(files):
            self._backend = t5_unigram(files)
            start, end, pad = T5_END, T5_END, T5_PAD
        elif is_gemma(files):
            self._backend, tokens = gemma_byte_pairs(files)
            start, end, pad = tokens["bos_token"], tokens["bos_token"], tokens["pad_token"]
        elif is_qwen(files):
            self._backend, tokens = qwen_byte_pairs(files)
            start = end = pad = tokens["pad_token"]
            _add_words(self._backend, vocabulary(files)[1])
        elif is_wordpiece(files):
            self._backend, tokens = bert_wordpiece(files)
            start, end, pad = (tokens[role] for role in ("cls_token", "sep_token", "pad_token"))
            _add_words(self._backend, vocabulary(files)[1])
        else:
            self._backend = _byte_pairs(files, config, special)
            start, end, pad = START, END, special.get("pad_token") or config.get("pad_token") or END
            pad = pad["content"] if isinstance(pad, dict) else pad
            _add_words(self._backend, {**_listed(config), **_json(files, "added_tokens.json")})
        self._backend.no_padding()
        self._backend.no_truncation()
        self.size = int(self._backend.get_vocab_size())
        self._vectors = _word_vectors(self._backend)
        self.length, self.any_length = token_count(files), reads_any_length(files)  # as the network that reads it asks
        self.start, self.end, self.pad = self._id(start), self._id(end), self._id(pad)  # one token of T5's and Gemma's
        self.around = len(self._backend.encode("").ids)  # the start and the end, where a text has them
        self.ends = not (is_gemma(files) or is_qwen(files))  # whether a text that is cut gets an end
        if pad not in (start, end):  # Stable Diffusion 2 pads with "!", which then is one wherever it stands in a text
            self._backend.add_special_tokens([pad])

    @classmethod
    def open(cls, folder: Path) -> "Tokenizer":
        """Open the tokenizer of a folder."""
        if not folder.is_dir():
            raise LdmrtError("tokenizer", "missing folder", expected=folder)
        return cls({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})

    def _id(self, token: str) -> int:
        found = self._backend.token_to_id(token) if isinstance(token, str) else None
        if found is None:
            raise LdmrtError("tokenizer", f"no token {token!r} in the vocabulary")
        return int(found)

    def __call__(
        self, texts: Sequence[str], length: int | None = None, ahead: int = 0, behind: str = ""
    ) -> NDArray[np.int64]:
        """Turn texts into token ids.

        Args:
            texts: Prompts; those that are too long are cut, and a warning quotes the part that is skipped.
            length: The tokens that every text is cut or padded to; the tokenizer's own by default.
            ahead: Tokens at the begin of each text that are no prompt, which the warning does not count.
            behind: What each text ends with that is no prompt either.

        Returns:
            Ids with start, end and padding, (len(texts), length), int64.

        Raises:
            LdmrtError: An item is not text.
        """
        length = length or self.length
        rows = np.full((len(texts), length), self.pad, np.int64)
        for text in texts:
            if not isinstance(text, str) or _broken(text):
                raise LdmrtError("tokenizer", "a prompt is not text", found=repr(text))
        for row, text, encoding in zip(rows, texts, self._backend.encode_batch(list(texts)), strict=True):
            pieces = [
                (piece, start)
                for found, (start, _) in zip(encoding.ids, encoding.offsets, strict=True)
                for piece in self._vectors.get(found, [found])
            ]
            ids = [piece for piece, _ in pieces]
            if len(ids) > length:
                lost = text[pieces[length - self.ends][1] : len(text) - len(behind)].strip()
                outside = self.around + ahead + (len(self.pieces(behind)) if behind else 0)
                has, fit = (count - outside for count in (len(ids), length))
                message = f"tokenizer: prompt has {has} tokens, {fit} fit; skipped: {lost!r}"
                warnings.warn(message, LdmrtWarning, stacklevel=2)
                ids = [*ids[: length - 1], self.end] if self.ends else ids[:length]
            row[: len(ids)] = ids
        return rows

    def pieces(self, text: str) -> list[tuple[int, ...]]:
        """Return the tokens of a text of any length, without start and end; those of an added word stand together."""
        if _broken(text):
            raise LdmrtError("tokenizer", "a prompt is not text", found=repr(text))
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return [tuple(self._vectors.get(found, [found])) for found in ids]

    def id_of(self, piece: str) -> int | None:
        """Return the id of a token as the vocabulary writes it, such as ",</w>"; None where there is none."""
        found = self._backend.token_to_id(piece)
        return None if found is None else int(found)

    def piece_of(self, number: int) -> str:
        """Return a token as the vocabulary writes it, by its id."""
        return str(self._backend.id_to_token(number))

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text, with the start and the end, before any is cut."""
        encodings = self._backend.encode_batch(list(texts))
        return [sum(len(self._vectors.get(found, [found])) for found in encoding.ids) for encoding in encodings]


def token_count(files: Mapping[str, bytes]) -> int:
    """Return how many tokens every text is cut or padded to, by the files of a tokenizer's folder."""
    if reads_any_length(files):
        return ANY_LENGTH
    if is_wordpiece(files):
        return BERT_LENGTH
    length = _json(files, "tokenizer_config.json").get("model_max_length", CLIP_LENGTH)
    if not isinstance(length, (int, float)) or not length >= 2:
        raise LdmrtError("tokenizer", "invalid model_max_length", expected="at least 2", found=length)
    return int(length) if length < 10**6 else CLIP_LENGTH  # 1e30 is how transformers writes that there is no limit


def _byte_pairs(files: Mapping[str, bytes], config: Mapping[str, Any], special: Mapping[str, Any]) -> Any:
    """Build CLIP's tokenizer of its files."""
    try:
        from tokenizers import Tokenizer as Backend
    except ImportError as error:
        raise unavailable(error, "tokenizer") from None
    try:
        if "vocab.json" not in files or "merges.txt" not in files:
            return Backend.from_str(files["tokenizer.json"].decode())
        vocab, pairs = byte_pairs(files)
        return clip_bpe(vocab, pairs, _any_case(config, special))
    except Exception as error:  # tokenizers raises bare Exception
        raise LdmrtError(
            "tokenizer",
            "cannot read the vocabulary",
            expected="vocab.json and merges.txt, or tokenizer.json",
            found=first_line(error),
        ) from None


def clip_bpe(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], any_case: Collection[str] = ()) -> Any:
    """Build CLIP's pipeline around a vocabulary: lower case, split by `PATTERN`, bytes, merges, start and end tokens.

    Args:
        vocab: The id of every token; it must hold the start and the end token.
        merges: Pairs of symbols in the order in which they are merged.
        any_case: The special tokens that are read in any case; others are read in lower case alone.

    Raises:
        LdmrtError: The vocabulary has no start or end token, or the package tokenizers is missing.
    """
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    except ImportError as error:
        raise unavailable(error, "tokenizer") from None

    if missing := {START, END} - vocab.keys():
        raise LdmrtError("tokenizer", f"no token {min(missing)!r} in the vocabulary")
    backend: Any = Tokenizer(models.BPE(dict(vocab), list(merges), end_of_word_suffix="</w>", unk_token=END))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    special = [AddedToken(token, special=True, normalized=token in any_case) for token in (START, END)]
    backend.add_special_tokens(special)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    start, end = backend.token_to_id(START), backend.token_to_id(END)
    backend.post_processor = processors.RobertaProcessing(
        (END, end), (START, start), trim_offsets=False, add_prefix_space=False
    )
    return backend


def _any_case(config: Mapping[str, Any], special: Mapping[str, Any]) -> set[str]:
    """Return the special tokens that are noted as normalised, which are read in any case.

    As in transformers, the list of added tokens comes before the roles, and the last role of a token decides.
    """
    listed = config.get("added_tokens_decoder")
    if isinstance(listed, Mapping) and listed:
        notes = list(listed.values())
    else:
        notes = [special.get(role) or config.get(role) for role in ROLES]
    read: dict[str, bool] = {}
    for note in notes:
        if isinstance(note, Mapping):
            read[str(note.get("content"))] = note.get("normalized") is True
        elif note:
            read[str(note)] = False
    return {token for token, normalised in read.items() if normalised}


def _listed(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the words that a tokenizer_config.json adds to the vocabulary, with their ids."""
    try:
        return {entry["content"]: int(number) for number, entry in config.get("added_tokens_decoder", {}).items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LdmrtError("tokenizer", "invalid added_tokens_decoder", found=first_line(error)) from None


def _add_words(backend: Any, words: Mapping[str, int]) -> None:
    """Add words that are tokens whole, read in any case, under the ids that the files give them."""
    from tokenizers import AddedToken

    for word, number in sorted(words.items(), key=lambda item: item[1]):
        if backend.token_to_id(word) is None:
            backend.add_tokens([AddedToken(word, normalized=True)])
        if (found := backend.token_to_id(word)) != number:
            raise LdmrtError("tokenizer", f"invalid id of the added token {word!r}", expected=found, found=number)


def _word_vectors(backend: Any) -> dict[int, list[int]]:
    """Return the ids that each added word stands for: by diffusers' convention word, word_1, word_2 and so on."""
    added = {token.content: i for i, token in backend.get_added_tokens_decoder().items() if not token.special}
    return {number: [number, *(added[name] for name in more_vectors(word, added))] for word, number in added.items()}


def _broken(text: str) -> bool:
    """Tell whether a string holds half of a character, as decoded bytes that are not UTF-8 do."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return parse_json("tokenizer", name, files.get(name, b"{}"))
