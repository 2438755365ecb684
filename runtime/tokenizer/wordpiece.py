"""Build BERT's tokenizer: basic tokens, then WordPiece (Devlin et al. 2019, arXiv:1810.04805, section 3)."""

from typing import Any

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.optional import unavailable

from .vocabulary import BERT_ROLES, Files, read, special_tokens, word_pieces

# Keys of tokenizer_config.json about basic tokens: the value where it is not given, and what it may be
OPTIONS: dict[str, tuple[object, tuple[object, ...]]] = {
    "do_lower_case": (True, (True, False)),
    "strip_accents": (None, (True, False, None)),  # None: where the text becomes lower case
    "tokenize_chinese_chars": (True, (True, False)),
    "do_basic_tokenize": (True, (True,)),
}


def bert_wordpiece(files: Files) -> tuple[Any, dict[str, str]]:
    """Build the pipeline of transformers' BertTokenizer: lower case without accents, words, pieces of words.

    Args:
        files: The files of a tokenizer's folder by name: vocab.txt or tokenizer.json, and configs.

    Returns:
        A tokenizer of the package tokenizers, which puts [CLS] before a text and [SEP] behind it; and the tokens of
        `BERT_ROLES` by their roles.

    Raises:
        LdmrtError: A file is missing or damaged, an option is unsupported, a special token is not in the vocabulary, or
            the package tokenizers is missing.
    """
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    except ImportError as error:
        raise unavailable(error, "tokenizer") from None

    config = read(files, "tokenizer_config.json")
    lower, accents, ideographs, _ = (_option(config, name) for name in OPTIONS)
    vocab, tokens = word_pieces(files), special_tokens(files, BERT_ROLES)
    for role, token in tokens.items():
        if token not in vocab and role != "mask_token":  # which no text needs
            raise LdmrtError("tokenizer", f"no token {token!r} in the vocabulary")
    try:
        backend: Any = Tokenizer(models.WordPiece(vocab, unk_token=tokens["unk_token"]))
    except Exception as error:  # tokenizers raises bare Exception
        raise LdmrtError("tokenizer", "cannot read the vocabulary", found=first_line(error)) from None
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=ideographs,
        strip_accents=accents,
        lowercase=lower,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = [AddedToken(token, special=True, normalized=False) for token in tokens.values() if token in vocab]
    backend.add_special_tokens(special)
    start, end = tokens["cls_token"], tokens["sep_token"]
    backend.post_processor = processors.BertProcessing((end, vocab[end]), (start, vocab[start]))
    return backend, tokens


def _option(config: JsonObject, name: str) -> Any:
    """Return an option of the config, or its usual value."""
    usual, allowed = OPTIONS[name]
    if (value := config.get(name, usual)) not in allowed or isinstance(value, (int, float)) != isinstance(value, bool):
        raise LdmrtError("tokenizer", f"unsupported {name} in tokenizer_config.json", expected=allowed, found=value)
    return value
