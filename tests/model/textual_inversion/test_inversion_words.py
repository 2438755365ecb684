"""The words of textual inversions: a file's name, the one inside it, another; and pairs of files for XL."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from ldmrt.model.textual_inversion.merge import add_embeddings, read_embedding
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.errors import LdmrtWarning
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from .test_inversion import Files, of_2022, text, vectors, write

WORDS: dict[str, tuple[str, Any, str | None, list[str]]] = {  # file, what is in it, FILE:WORD, the words it then is
    "the file's name and the inner one": ("style.pt", of_2022(vectors(2)), None, ["<cat-toy>", "style"]),
    "a name of two words": ("My Style.pt", of_2022(vectors(1)), None, ["<cat-toy>", "My Style"]),
    "one name": ("<cat-toy>.pt", of_2022(vectors(1)), None, ["<cat-toy>"]),
    "no inner name": ("style.safetensors", {"emb_params": vectors(1)}, None, ["style"]),
    "a placeholder": ("style.bin", {"*": vectors(1)}, None, ["style"]),
    "diffusers' own name for files": ("learned_embeds.safetensors", {"<cat-toy>": vectors(1)}, None, ["<cat-toy>"]),
    "another word": ("style.pt", of_2022(vectors(2)), "mine", ["mine"]),
    "several words": ("style.pt", of_2022(vectors(2)), "<a><b>", ["<a><b>"]),
    "pivotal tuning": ("x_emb.safetensors", {"clip_l": vectors(2)}, None, ["x_emb", "<s0><s1>"]),
    "a vector for each word": ("style.safetensors", {"<a>": vectors(1), "<b>": vectors(1)}, None, ["<a><b>", "style"]),
    "a vector for a word, flat": (
        "style.bin",
        {"<b>": vectors(1)[0], "<a>": vectors(1)[0]},
        None,
        ["<b><a>", "style"],
    ),
    "one vector for XL": ("style.safetensors", {"clip_l": vectors(1)}, None, ["style"]),
    "a word in brackets": ("pears.pt", of_2022(vectors(1)) | {"name": "<pears>"}, None, ["<pears>", "pears"]),
    "a byte as the file's name": ("b.pt", of_2022(vectors(1)), None, ["<cat-toy>"]),
    "the inner name is known": ("style.pt", of_2022(vectors(1)) | {"name": "b"}, None, ["style"]),
}


@pytest.mark.parametrize("name", list(WORDS))
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:embedding. .* alone")
def test_every_word_stands_for_the_vectors(name: str, checkpoint: Path, tmp_path: Path) -> None:
    file, content, word, words = WORDS[name]
    encoder, files = text(checkpoint)
    tokenizers = {"tokenizer": files}
    embedding = read_embedding(write(content, tmp_path / file), word)
    record = add_embeddings({"text_encoder": encoder}, tokenizers, [embedding])
    assert [(noted["file"], noted["words"], noted["token"]) for noted in record] == [(file, words, words[0])]
    read = Tokenizer(tokenizers["tokenizer"])
    (expected,) = embedding.vectors.values()
    for said in words:
        row = read([f"a {said.upper()} two"])[0].tolist()
        (place,) = (i for i in range(1, len(row)) if row[i] >= 555 > row[i - 1])
        table = encoder.get_input_embeddings().weight
        assert torch.equal(table[row[place : place + len(expected)]], expected)
        assert row[place + len(expected)] < 555


def encoders(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Files]]:
    """The text encoders of XL, tiny, with the same vocabulary."""
    first, files = text(checkpoint)
    config = first.config.to_dict() | {"hidden_size": 32, "projection_dim": 20}
    second = CLIPTextModelWithProjection(CLIPTextConfig(**config)).eval()
    return {"text_encoder": first, "text_encoder_2": second}, {"tokenizer": files, "tokenizer_2": files}


PAIRS: dict[str, tuple[list[tuple[str, Any, str | None]], set[str]]] = {
    "in one file": ([("style.safetensors", {"clip_l": vectors(2), "clip_g": vectors(2, 32)}, None)], {"style"}),
    "in two": (
        [("learned_embeds.safetensors", {"<cat>": vectors(2)}, None),
         ("learned_embeds_2.safetensors", {"<cat>": vectors(2, 32)}, None)], {"<cat>"}),
    "in two, the other way round": (
        [("b.bin", {"<cat>": vectors(1, 32)}, None), ("a.pt", {"<cat>": vectors(1)}, None)], {"<cat>"}),
    "in two under one word": (
        [("l.safetensors", {"clip_l": vectors(2)}, "style"), ("g.safetensors", {"clip_g": vectors(2, 32)}, "style")],
        {"style"}),
    "pivotal": (
        [("x.safetensors", {"clip_l": vectors(3), "clip_g": vectors(3, 32)}, "<s0><s1><s2>")], {"<s0><s1><s2>"}),
}  # fmt: skip


@pytest.mark.parametrize("name", list(PAIRS))
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:embedding")
def test_pairs_of_xl(name: str, checkpoint: Path, tmp_path: Path) -> None:
    given, words = PAIRS[name]
    parts, tokenizers = encoders(checkpoint)
    before = {part: len(encoder.get_input_embeddings().weight) for part, encoder in parts.items()}
    embeddings = [read_embedding(write(content, tmp_path / file), word) for file, content, word in given]
    record = add_embeddings(parts, tokenizers, embeddings)
    assert all(words <= set(noted["words"]) for noted in record)
    for part, encoder in parts.items():
        expected = next(
            one.vectors.get(part, one.vectors.get("", torch.empty(0)))
            for one in embeddings
            if one.vectors.get(part, one.vectors.get("", torch.empty(0, 0))).shape[1] == encoder.config.hidden_size
        )
        row = Tokenizer(tokenizers[part.replace("text_encoder", "tokenizer")])([min(words)])[0]
        assert torch.equal(encoder.get_input_embeddings().weight[row[1 : 1 + len(expected)]], expected)
        assert min(row[1 : 1 + len(expected)]) >= before[part]


@pytest.mark.parametrize(
    ("key", "width", "part", "other"),
    [("clip_l", 24, "text_encoder", "text_encoder_2"), ("clip_g", 32, "text_encoder_2", "text_encoder")],
)
def test_half_of_a_pair(key: str, width: int, part: str, other: str, checkpoint: Path, tmp_path: Path) -> None:
    """diffusers, too, then leaves the other tokenizer as it is, which reads the word letter by letter."""
    parts, tokenizers = encoders(checkpoint)
    untouched = dict(tokenizers[other.replace("text_encoder", "tokenizer")])
    embedding = read_embedding(write({key: vectors(1, width)}, tmp_path / "style.safetensors"))
    with pytest.warns(LdmrtWarning, match=f"{other} has no vectors for style and reads that as any other text"):
        add_embeddings(parts, tokenizers, [embedding])
    assert tokenizers[other.replace("text_encoder", "tokenizer")] == untouched
    assert len(parts[part].get_input_embeddings().weight) == 556
    assert len(parts[other].get_input_embeddings().weight) == 555


def test_half_of_a_pair_for_a_model_without_it(checkpoint: Path, tmp_path: Path) -> None:
    encoder, files = text(checkpoint)
    embedding = read_embedding(write({"clip_g": vectors(1, 32)}, tmp_path / "style.safetensors"))
    with pytest.raises(
        LdmrtError, match=r"style\.safetensors holds no vectors .*; expected text_encoder; found text_encoder_2"
    ):
        add_embeddings({"text_encoder": encoder}, {"tokenizer": files}, [embedding])


def test_folder_of_diffusers(tmp_path: Path) -> None:
    write({"<cat-toy>": vectors(1)}, tmp_path / "learned_embeds.bin")
    embedding = read_embedding(tmp_path)
    assert (embedding.token, embedding.aliases, embedding.name) == ("<cat-toy>", (), "learned_embeds.bin")
