"""Merge textual inversions (Gal et al. 2022, arXiv:2208.01618): vectors that were learned for one word of a prompt."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldmrt.model.networks.ldm_bert import LDMBert
from ldmrt.model.weights.pickled import lazy_tensor
from ldmrt.model.weights.tensor_files import read
from ldmrt.model.weights.unread import numbers
from ldmrt.model.weights.weights import finite
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.files.reading import JsonObject, find_file, sha256
from ldmrt.runtime.files.recognise import BUNDLE, CHECKPOINT, CONTROLNET, EMBEDDING, LORA, refuse_other
from ldmrt.runtime.tokenizer.tokenizer import ANY_LENGTH
from ldmrt.runtime.tokenizer.vocabulary import several, vocabulary

from . import encoders as kinds
from .added_words import check_new, with_words

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The text encoders of XL, and of those that followed it, by their names in files for them
ENCODERS = {
    kinds.T5: kinds.T5,
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "text_encoders_0": "text_encoder",
    "text_encoders_1": "text_encoder_2",
}
USUAL = ("learned_embeds.safetensors", "learned_embeds.bin")


@dataclass(frozen=True)
class Embedding:
    """Holds a word and its (count, width) vectors for each text encoder; for "" where the file does not say.

    `aliases` are other words for the same vectors, each with rows of its own. A word such as "<s0><s1>" is several,
    one for each vector.
    """

    token: str
    vectors: Mapping[str, Tensor] = field(repr=False)
    name: str
    sha256: str
    aliases: tuple[str, ...] = ()


def read_embedding(path: str | Path, token: str | None = None) -> Embedding:
    """Read a file of diffusers, of AUTOMATIC1111's web UI or for XL.

    Args:
        path: The file, or a folder with one.
        token: The word for the vectors. By default the word that the file names, and the file's own name, as in the web
            UI; vectors for XL are also <s0>, <s1> ..., as diffusers' scripts for pivotal tuning call them.

    Returns:
        The word and its vectors, float32.

    Raises:
        LdmrtError: The file is missing, damaged, or no textual inversion; or the word cannot stand in a prompt.
    """
    refuse_other("embedding", Path(path), EMBEDDING, BUNDLE, CHECKPOINT, CONTROLNET, LORA)
    path = find_file("embedding", Path(path), USUAL)
    content, _ = read("embedding", path)
    return embedding_of(content, path, token)


def embedding_of(content: object, path: Path, token: str | None = None, name: str | None = None) -> Embedding:
    """Make an embedding of the content of a file, or of a part of it with a `name` of its own; see `read_embedding`."""
    inner, values = _vectors(content)
    vectors = {key: value for key, value in values.items() if isinstance(value, Tensor) and value.ndim in (1, 2)}
    if not vectors or len(vectors) < len(values):
        keys = ", ".join(map(str, list(content)[:3])) if isinstance(content, Mapping) else type(content).__name__
        raise LdmrtError("embedding", f"{path} holds no textual inversion", expected="vectors of one word", found=keys)
    for key, value in vectors.items():
        if lazy_tensor("embedding", key or "the vectors", value, path).dtype is None:
            raise LdmrtError("embedding", f"the vectors in {path} are not floating-point numbers", found=value.dtype)
    if not all(value.numel() and value.float().norm().isfinite() for value in vectors.values()):
        raise LdmrtError("embedding", f"the vectors in {path} are empty or not finite", hint="use another copy of it")
    matrices = {key: value.detach().float().reshape(-1, value.shape[-1]) for key, value in vectors.items()}
    word, *aliases = (token,) if token else _words(inner, path, matrices)
    if not _proper(word):
        hint = "--embedding FILE:WORD, with another word"
        raise LdmrtError("embedding", f"invalid token of {path}", found=repr(word), hint=hint)
    aliases = [alias for alias in aliases if alias != word and _proper(alias)]
    return Embedding(word, matrices, name or path.name, sha256(path), tuple(aliases))


def add_embeddings(
    text_encoders: "Mapping[str, PreTrainedModel | LDMBert]",
    tokenizers: dict[str, dict[str, bytes]],
    embeddings: Sequence[Embedding],
    unrounded: Collection[str] = (),
) -> list[JsonObject]:
    """Add the vectors of embeddings to the text encoders that they are for, and their words to the tokenizers.

    Of several words for one embedding those that are known already are skipped, with a warning.

    Args:
        text_encoders: A checkpoint's text encoders, which are changed in place.
        tokenizers: The files of its tokenizers, which are replaced in this dict.
        embeddings: The embeddings, in the order in which their words get ids.
        unrounded: The encoders whose table of vectors becomes float32.

    Returns:
        A record for a manifest for each embedding: its token, words, file and SHA-256.

    Raises:
        LdmrtError: An embedding is for none of the encoders, of another width, or all of its words are known; or the
            encoders are not CLIP's.
    """
    encoders = kinds.with_words(text_encoders)
    if embeddings and text_encoders and not encoders:
        problem, found = (
            f"{embeddings[0].name} cannot be added to this text encoder",
            next(iter(text_encoders.values())),
        )
        raise LdmrtError("embedding", problem, expected="one of CLIP", found=kinds.kind_of(found))
    embeddings = [replace(each, vectors=kinds.of_parts(each.vectors, encoders)) for each in embeddings]
    known: dict[str, set[str]] = {part: set() for part in encoders}
    record = []
    for embedding in embeddings:
        words: list[str] = []
        for part in parts_for(embedding, encoders):
            if part in unrounded:
                table = encoders[part].get_input_embeddings()
                assert isinstance(table, nn.Embedding)
                table.weight.data = numbers(table.weight).float()
            name = part.replace("text_encoder", "tokenizer")
            added, tokenizers[name] = _add_words(encoders[part], tokenizers[name], embedding, part)
            known[part].update(added)
            words += [word for word in added if word not in words]
        noted = {"token": words[0], "words": words, "file": embedding.name, "sha256": embedding.sha256}
        record.append(noted)
    for part, its in known.items():
        if missing := sorted(set().union(*known.values()) - its):
            message = f"embedding: {part} has no vectors for {', '.join(missing)} and reads that as any other text"
            warnings.warn(message, LdmrtWarning, stacklevel=2)
    return record


def parts_for(embedding: Embedding, text_encoders: "Mapping[str, PreTrainedModel]") -> list[str]:
    """Return the names of the encoders that a file has vectors for: those it names, or all of the vectors' width."""
    if "" not in embedding.vectors:
        parts = [part for part in text_encoders if part in embedding.vectors]
    else:
        width = embedding.vectors[""].shape[1]
        parts = [part for part, encoder in text_encoders.items() if encoder.config.hidden_size == width]
        parts = parts or list(text_encoders)[:1]  # `add_embedding` then reports the width
    if not parts:
        expected, found = ", ".join(text_encoders), ", ".join(embedding.vectors)
        raise LdmrtError(
            "embedding", f"{embedding.name} holds no vectors for this model", expected=expected, found=found
        )
    return parts


def add_embedding(
    text_encoder: "PreTrainedModel",
    tokenizer_files: Mapping[str, bytes],
    embedding: Embedding,
    component: str = "text_encoder",
) -> dict[str, bytes]:
    """Add the vectors of an embedding to a text encoder of CLIP, or to T5, in place.

    By diffusers' convention several vectors are the words token, token_1, token_2 ... and a prompt's "token" stands
    for all of them. Nothing is changed if anything does not fit.

    Args:
        text_encoder: A text encoder of transformers.
        tokenizer_files: The files of its tokenizer, name to content.
        embedding: The word and its vectors.
        component: The encoder's name in the checkpoint, which tells the two of XL apart.

    Returns:
        The tokenizer's files with the words.

    Raises:
        LdmrtError: The embedding has no vectors for this encoder, they have another width, or a word is known.
    """
    vectors = embedding.vectors.get(component, embedding.vectors.get(""))
    if vectors is None:
        raise LdmrtError(component, f"{embedding.name} holds no vectors for it", found=", ".join(embedding.vectors))
    table = text_encoder.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    old = table.weight
    positions = getattr(text_encoder.config, "max_position_embeddings", ANY_LENGTH)  # T5 has relative ones
    _check_shape(vectors, old, positions, embedding.name, component)
    known, added = vocabulary(tokenizer_files)
    if not known:
        problem, hint = "words can be added to tokenizer.json alone", "save the tokenizer with transformers 5"
        raise LdmrtError(component.replace("text_encoder", "tokenizer"), problem, found="spiece.model", hint=hint)
    size = len(known)
    if max(known.values()) >= size or size > len(old):
        found = f"{size} words, ids to {max(known.values())}, {len(old)} vectors"
        raise LdmrtError("tokenizer", "the ids leave gaps or do not fit the text encoder", found=found)
    words = _each(embedding.token, len(vectors), embedding.name)
    check_new(words, known, added)

    rows = torch.zeros(max(len(old), size + len(words)), old.shape[1], dtype=old.dtype, device=old.device)
    rows[: len(old)] = numbers(old)
    rows[size : size + len(words)] = vectors
    if not finite(rows):
        raise LdmrtError(component, f"the vectors of {embedding.name} overflow in {old.dtype}")
    text_encoder.set_input_embeddings(nn.Embedding.from_pretrained(rows, freeze=not old.requires_grad))
    text_encoder.config.vocab_size = len(rows)
    return with_words(tokenizer_files, {word: size + i for i, word in enumerate(words)})


def _check_shape(vectors: Tensor, old: Tensor, length: int, name: str, component: str) -> None:
    """Refuse vectors of another width than the encoder's, or more than fit into a prompt."""
    if vectors.shape[1] != old.shape[1]:
        raise LdmrtError(
            component,
            f"{name} is of another width",
            expected=f"{old.shape[1]} of the text encoder",
            found=vectors.shape[1],
            hint="an embedding fits the family that it was trained on: 1.x, 2.x, XL, 3 or FLUX.1",
        )
    if len(vectors) > length - 2:  # start and end
        raise LdmrtError(
            component, f"{name} has more vectors than a prompt", expected=f"at most {length - 2}", found=len(vectors)
        )


def _add_words(
    encoder: "PreTrainedModel", files: Mapping[str, bytes], embedding: Embedding, part: str
) -> tuple[list[str], dict[str, bytes]]:
    """Add an embedding under each of its new words, of which there must be one; returns those words, and the files."""
    files, words, refused = dict(files), [], []
    for word in (embedding.token, *embedding.aliases):
        try:
            files = add_embedding(encoder, files, replace(embedding, token=word), part)
            words.append(word)
        except LdmrtError as error:  # noqa: PERF203 - a few words
            refused.append(error)
    if not words:
        raise refused[0]
    for reason in refused:
        message = f"embedding: {embedding.name} is {' or '.join(words)} alone: {reason.problem}"
        warnings.warn(message, LdmrtWarning, stacklevel=4)
    return words, files


def _each(token: str, count: int, name: str) -> list[str]:
    """Return the word of each vector: token, token_1, token_2 ..., or those that one like "<s0><s1>" consists of."""
    words = several(token)
    if len(words) < 2 or "".join(words) != token:
        return [token, *(f"{token}_{i}" for i in range(1, count))]
    if len(words) != count:
        raise LdmrtError("embedding", f"{token!r} is not one word for each vector of {name}", expected=count)
    return words


def _words(inner: object, path: Path, vectors: Mapping[str, Tensor]) -> list[str]:
    """Return every word for a file's vectors, the one to be noted first."""
    words = [inner] if isinstance(inner, str) and inner != "*" else []  # "*": where training put its vectors
    if not words or path.name not in USUAL:
        words.append(path.stem)
    counts = {len(value) for key, value in vectors.items() if key}
    if len(counts) == 1 and (count := counts.pop()) > 1:
        words.append("".join(f"<s{i}>" for i in range(count)))
    return words


def _proper(word: str) -> bool:
    """Tell whether a word can stand in a prompt: not empty, and with no more than single spaces inside."""
    return bool(word) and word == " ".join(word.split())


def _vectors(content: object) -> tuple[object, dict[str, object]]:
    """Find a file's name for its word, if it has one, and its value for each text encoder; none in a file of others."""
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
        return _several(content)
    ((key, value),) = content.items()
    return None if key == "emb_params" else key, {"": value}  # emb_params: the web UI's .safetensors


def _several(content: Mapping[object, object]) -> tuple[object, dict[str, object]]:
    """Join the words of a file that has a vector for each, such as <s1> and <s2>, to one word; none in other files."""
    values = content.values()
    vectors = [value for value in values if isinstance(value, Tensor) and value.ndim in (1, 2) and value.numel()]
    words = [key for key in content if isinstance(key, str) and several(key) == [key]]
    if len(vectors) < len(values) or len(words) < len(values):
        return None, {}
    if len({value.shape[-1] for value in vectors}) > 1 or any(value.numel() > value.shape[-1] for value in vectors):
        return None, {}
    return "".join(words), {"": torch.cat([value.reshape(1, -1) for value in vectors])}
