"""Build Gemma's tokenizer: byte pairs over whole texts, in which a space is a letter (Gemma Team 2024, section 2.2)."""

from typing import Any

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.optional import unavailable

from .vocabulary import GEMMA_ROLES, Files, read, special_tokens


def gemma_byte_pairs(files: Files) -> tuple[Any, dict[str, str]]:
    """Build the tokenizer that transformers' GemmaTokenizer builds, which puts <bos> before a text.

    Args:
        files: The files of a tokenizer's folder by name: tokenizer.json, and configs.

    Returns:
        A tokenizer of the package tokenizers, and the tokens of `GEMMA_ROLES` by their roles.

    Raises:
        LdmrtError: A file is missing or damaged, a special token is not in the vocabulary, texts do not begin with
            <bos> alone, or the package tokenizers is missing.
    """
    try:
        from tokenizers import Tokenizer, processors
    except ImportError as error:
        raise unavailable(error, "tokenizer") from None
    config, tokens = read(files, "tokenizer_config.json"), special_tokens(files, GEMMA_ROLES)
    try:
        backend: Any = Tokenizer.from_str(files["tokenizer.json"].decode())
    except Exception as error:  # tokenizers raises bare Exception
        expected = "tokenizer.json, of byte pairs"
        raise LdmrtError(
            "tokenizer", "cannot read the vocabulary", expected=expected, found=first_line(error)
        ) from None
    ids = {role: backend.token_to_id(token) for role, token in tokens.items()}
    for role, token in tokens.items():
        if ids[role] is None:
            raise LdmrtError("tokenizer", f"no token {token!r} in the vocabulary")
    if "add_bos_token" in config or "add_eos_token" in config:  # which transformers puts above tokenizer.json
        start = [(tokens["bos_token"], ids["bos_token"])] if config.get("add_bos_token") else []
        end = [(tokens["eos_token"], ids["eos_token"])] if config.get("add_eos_token") else []
        template = [*(token for token, _ in start), "$A", *(token for token, _ in end)]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=start + end)
    if (around := backend.encode("").ids) != [ids["bos_token"]]:
        problem, expected = "another token than the start around a text", tokens["bos_token"]
        found = " ".join(map(str, map(backend.id_to_token, around))) or "none"
        raise LdmrtError("tokenizer", problem, expected=expected, found=found, hint="set add_bos_token to true")
    return backend, tokens
