"""Build Qwen2's tokenizer, which Qwen3 has too: byte pairs of words and the marks of a chat (Qwen Team 2024)."""

from typing import Any

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.optional import unavailable

from .vocabulary import QWEN_ROLES, Files, byte_pairs, special_tokens

# Words with the sign or the space before them, single digits, runs of signs, line breaks and other spaces.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen_byte_pairs(files: Files) -> tuple[Any, dict[str, str]]:
    """Build the tokenizer that transformers' Qwen2Tokenizer builds, which puts nothing before or behind a text.

    Args:
        files: The files of a tokenizer's folder by name: tokenizer.json, or vocab.json and merges.txt, and configs.

    Returns:
        A tokenizer of the package tokenizers, and the tokens of `QWEN_ROLES` by their roles.

    Raises:
        LdmrtError: A file is missing or damaged, a text gets another token around it, or the package tokenizers is
            missing.
    """
    try:
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    except ImportError as error:
        raise unavailable(error, "tokenizer") from None
    tokens = special_tokens(files, QWEN_ROLES)
    try:
        if "tokenizer.json" in files:
            backend: Any = Tokenizer.from_str(files["tokenizer.json"].decode())
        else:
            backend = Tokenizer(models.BPE(*byte_pairs(files)))
            backend.normalizer = normalizers.NFC()
            words = pre_tokenizers.Split(Regex(PATTERN), "isolated")
            letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            backend.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    except LdmrtError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise LdmrtError(
            "tokenizer",
            "cannot read the vocabulary",
            expected="tokenizer.json, or vocab.json and merges.txt",
            found=first_line(error),
        ) from None
    if around := backend.encode("").ids:
        problem, found = "another token than those of the text", " ".join(map(str, map(backend.id_to_token, around)))
        raise LdmrtError("tokenizer", problem, expected="no token around a text", found=found)
    return backend, tokens
