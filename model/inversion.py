"""Textual inversion (Gal et al. 2022, arXiv:2208.01618): vectors that were learned for one word of the prompt."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.errors import first_line
from ldmrt.runtime.files import sha256
from ldmrt.runtime.recognise import BUNDLE, CHECKPOINT, CONTROLNET, EMBEDDING, LORA, refuse_other
from ldmrt.runtime.tokenizer import END, START

# What the files for XL call its two text encoders
ENCODERS = {
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "text_encoders_0": "text_encoder",
    "text_encoders_1": "text_encoder_2",
}
ADDED = "added_tokens.json"


@dataclass(frozen=True)
class Embedding:
    """A file: the word, and its (count, width) vectors for each text encoder; for "" where the file does not say."""

    token: str
    vectors: Mapping[str, Tensor] = field(repr=False)
    name: str
    sha256: str


def read_embedding(path: str | Path, token: str | None = None) -> Embedding:
    """A file of diffusers, of AUTOMATIC1111's web UI or for XL. The word is `token`, or what the file says it is, or
    the file's own name.
    """
    path = Path(path)
    refuse_other("embedding", path, EMBEDDING, BUNDLE, CHECKPOINT, CONTROLNET, LORA)
    content = _read(path)
    name, vectors = _found(content)
    if not vectors or not all(isinstance(value, Tensor) and value.ndim in (1, 2) for value in vectors.values()):
        keys = ", ".join(map(str, list(content)[:3])) if isinstance(content, Mapping) else type(content).__name__
        raise LdmrtError("embedding", f"{path} is no textual inversion", expected="the vectors of one word", found=keys)
    matrices = {key: value.detach().float().reshape(-1, value.shape[-1]) for key, value in vectors.items()}
    if not all(value.numel() and value.isfinite().all() for value in matrices.values()):
        raise LdmrtError("embedding", f"the vectors in {path} are empty or not finite", hint="use another copy of it")
    word = token or (name if isinstance(name, str) else None) or path.stem
    if not word or word != " ".join(word.split()):
        raise LdmrtError("embedding", f"impossible token of {path}", found=repr(word), hint="give it another token")
    return Embedding(word, matrices, path.name, sha256(path))


def add_embedding(
    text_encoder: Any, tokenizer_files: Mapping[str, bytes], embedding: Embedding, component: str = "text_encoder"
) -> dict[str, bytes]:
    """Give a CLIP text encoder of transformers the vectors, in place, and return the tokenizer's files with the words.

    By diffusers' convention several vectors are the words token, token_1, token_2 ... and a prompt's "token" stands
    for all of them. `component` is which encoder of XL this is. Nothing is changed if anything does not fit.
    """
    vectors = embedding.vectors.get(component, embedding.vectors.get(""))
    if vectors is None:
        raise LdmrtError(component, f"{embedding.name} holds nothing for it", found=", ".join(embedding.vectors))
    old = text_encoder.get_input_embeddings().weight
    if vectors.shape[1] != old.shape[1]:
        raise LdmrtError(
            component,
            f"{embedding.name} is of another width",
            expected=f"{old.shape[1]} of the text encoder",
            found=vectors.shape[1],
            hint="an embedding fits the family that it was trained on: 1.x, 2.x or XL",
        )
    vocabulary, added = _vocabulary(tokenizer_files)
    size = len(vocabulary)
    if max(vocabulary.values()) >= size or size > len(old):
        found = f"{size} words, ids to {max(vocabulary.values())}, {len(old)} vectors"
        raise LdmrtError("tokenizer", "the ids leave gaps or do not fit the text encoder", found=found)
    words = [embedding.token, *(f"{embedding.token}_{i}" for i in range(1, len(vectors)))]
    _check_new(words, vocabulary, added)

    ids = {word: size + i for i, word in enumerate(words)}
    rows = torch.zeros(max(len(old), size + len(words)), old.shape[1], dtype=old.dtype, device=old.device)
    rows[: len(old)] = old.detach()
    rows[size : size + len(words)] = vectors
    text_encoder.set_input_embeddings(nn.Embedding.from_pretrained(rows, freeze=not old.requires_grad))
    text_encoder.config.vocab_size = len(rows)
    return _with_words(tokenizer_files, ids)


def _read(path: Path) -> Any:
    """What is in the file; a pickle is read without running what is in it."""
    if not path.is_file():
        raise LdmrtError("embedding", "missing file", expected=path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([nn.ParameterDict]):  # the files of the first textual inversion code
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, pickle and zip raise classes of their own
        found = first_line(error)
        raise LdmrtError("embedding", f"cannot read {path}", expected="tensors", found=found) from None


def _found(content: Any) -> tuple[object, dict[str, Any]]:
    """What a file calls its word, if anything, and what it holds for each text encoder: nothing if it is another."""
    if isinstance(content, Tensor):
        return None, {"": content}
    if not isinstance(content, Mapping) or not content:
        return None, {}
    if "string_to_param" in content:  # the web UI's .pt
        inner = content["string_to_param"]
        values = list(inner.values()) if isinstance(inner, Mapping | nn.ParameterDict) else []
        return content.get("name"), {"": values[0]} if len(values) == 1 else {}
    if content.keys() <= ENCODERS.keys():
        return None, {ENCODERS[key]: value for key, value in content.items()}
    if len(content) > 1:
        return None, {}
    ((key, value),) = content.items()
    return None if key == "emb_params" else key, {"": value}  # emb_params: the web UI's .safetensors


def _vocabulary(files: Mapping[str, bytes]) -> tuple[dict[str, int], dict[str, int]]:
    """Every word of a tokenizer with its id, and those alone that were added to the byte-pair vocabulary."""
    whole, config = (_json(files, name) for name in ("tokenizer.json", "tokenizer_config.json"))
    try:
        words = _json(files, "vocab.json") or whole.get("model", {}).get("vocab", {})
        added = {
            **{entry["content"]: int(entry["id"]) for entry in whole.get("added_tokens", [])},
            **{entry["content"]: int(number) for number, entry in config.get("added_tokens_decoder", {}).items()},
            **{word: int(number) for word, number in _json(files, ADDED).items()},
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LdmrtError("tokenizer", "cannot read the added tokens", found=first_line(error)) from None
    if not words:
        raise LdmrtError("tokenizer", "missing files", expected="vocab.json and merges.txt, or tokenizer.json")
    return {**words, **added}, added


def _check_new(words: list[str], vocabulary: Mapping[str, int], added: Mapping[str, int]) -> None:
    """Refuse words that are known, by case or not: a prompt is read in lower case, and so are the words added to it."""
    hint = "give the embedding another token"
    known = {word.lower() for word in (START, END, *added)}
    for word in (*words, f"{words[0]}_{len(words)}"):  # the one after the last would be taken for one more vector
        if word in vocabulary or word.lower() in known:
            raise LdmrtError("tokenizer", f"{word!r} is already in the vocabulary", hint=hint)
    if (match := re.fullmatch(r"(.+)_\d+", words[0])) and match[1].lower() in known:
        raise LdmrtError("tokenizer", f"{words[0]!r} would be read as one more vector of {match[1]!r}", hint=hint)


def _with_words(files: Mapping[str, bytes], ids: Mapping[str, int]) -> dict[str, bytes]:
    """The files with these words in every one that lists added words."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    entries = {number: {"content": word, **plain} for word, number in ids.items()}
    changed: dict[str, Any] = {ADDED: {**_json(files, ADDED), **ids}}
    if whole := _json(files, "tokenizer.json"):
        more = [{"id": number, **entry} for number, entry in entries.items()]
        changed["tokenizer.json"] = {**whole, "added_tokens": [*whole.get("added_tokens", []), *more]}
    config = _json(files, "tokenizer_config.json")
    if decoder := config.get("added_tokens_decoder"):
        decoder = {**decoder, **{str(number): entry for number, entry in entries.items()}}
        changed["tokenizer_config.json"] = {**config, "added_tokens_decoder": decoder}
    new = {name: (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode() for name, value in changed.items()}
    return {**files, **new}


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(files.get(name, b"{}")))
    except (ValueError, TypeError) as error:
        found = first_line(error)
        raise LdmrtError("tokenizer", f"cannot read {name}", expected="a JSON object", found=found) from None
