"""Textual inversion: every format of file, and diffusers' text encoder output for prompts that use the words."""

import copy
import dataclasses
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from tokenizers import Tokenizer as Backend
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from ldmrt.model import load
from ldmrt.model.checkpoint.checkpoint import build
from ldmrt.model.networks.ldm_bert import LDMBert
from ldmrt.model.textual_inversion.merge import Embedding, add_embedding, add_embeddings, read_embedding
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.files.reading import sha256

WIDTH = 24  # of the tiny checkpoint's text encoder
PROMPTS = ["a red <Cat-toy> apple", "two <cat-toy>, <CAT-TOY>s", "a <cat-toy>_1", "two pears"]
Files = dict[str, bytes]


def text(checkpoint: Path) -> tuple[Any, Files]:
    """The tiny checkpoint's text encoder and the files of its tokenizer."""
    loaded = load(checkpoint)
    return loaded.text_encoders["text_encoder"], loaded.tokenizers["tokenizer"]


def vectors(count: int, width: int = WIDTH) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


def of_2022(value: Tensor) -> dict[str, Any]:
    """What the first textual inversion code saved, and the web UI after it."""
    return {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": {"*": value},
        "name": "<cat-toy>",
        "step": 9,
    }


def in_modules(value: Tensor) -> dict[str, Any]:
    return of_2022(value) | {"string_to_param": nn.ParameterDict({"*": nn.Parameter(value)})}


def in_old_modules(value: Tensor) -> dict[str, Any]:
    """As torch before 1.12 pickled it."""
    content = in_modules(value)
    content["string_to_param"].__dict__.pop("_keys", None)
    content["string_to_param"]._parameters = OrderedDict({"*": nn.Parameter(value)})
    return content


FORMATS: dict[str, tuple[str, Any, str]] = {  # file, what is in it, the word it then is
    "diffusers": ("learned_embeds.safetensors", lambda v: {"<cat-toy>": v}, "<cat-toy>"),
    "diffusers, pickled": ("learned_embeds.bin", lambda v: {"<cat-toy>": v}, "<cat-toy>"),
    "web UI, pickled": ("style.pt", of_2022, "<cat-toy>"),
    "web UI, pickled modules": ("style.pt", in_modules, "<cat-toy>"),
    "web UI, pickled without a name": ("my-style.pt", lambda v: {"string_to_param": {"*": v}}, "my-style"),
    "web UI": ("my-style.safetensors", lambda v: {"emb_params": v}, "my-style"),
    "a tensor": ("my-style.bin", lambda v: v, "my-style"),
    "half precision": ("learned_embeds.safetensors", lambda v: {"<cat-toy>": v.half()}, "<cat-toy>"),
}


def write(content: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("count", [None, 1, 3])
@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format(name: str, count: int | None, tmp_path: Path) -> None:
    file, content, token = FORMATS[name]
    expected = vectors(count or 1)
    path = write(content(expected if count else expected[0]), tmp_path / file)
    embedding = read_embedding(path)
    assert (embedding.token, embedding.name, embedding.sha256) == (token, file, sha256(path))
    assert embedding.vectors.keys() == {""}
    assert torch.equal(embedding.vectors[""], expected.half().float() if name == "half precision" else expected)
    assert read_embedding(path, "other").token == "other"


@pytest.mark.parametrize("names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_format_of_xl(names: tuple[str, str], tmp_path: Path) -> None:
    parts = {names[0]: vectors(2), names[1]: vectors(2, 32)}
    embedding = read_embedding(write(parts, tmp_path / "style.safetensors"))
    assert embedding.token == "style"
    assert embedding.vectors.keys() == {"text_encoder", "text_encoder_2"}
    assert torch.equal(embedding.vectors["text_encoder_2"], parts[names[1]])


LAYOUTS = ["as it is", "vocab.json", "tokenizer.json", "listed in the config"]


def laid_out(files: Files, layout: str) -> Files:
    """The files as other versions of transformers write them."""
    if layout == "vocab.json":
        return {name: value for name, value in files.items() if name != "tokenizer.json"}
    if layout == "tokenizer.json":
        return {name: value for name, value in files.items() if name not in ("vocab.json", "merges.txt")}
    if layout == "listed in the config":
        special = [token for token in json.loads(files["tokenizer.json"])["added_tokens"] if token["special"]]
        decoder = {str(token.pop("id")): token for token in special}
        config = json.loads(files["tokenizer_config.json"]) | {"added_tokens_decoder": decoder}
        return laid_out(files, "vocab.json") | {"tokenizer_config.json": json.dumps(config).encode()}
    return files


def tokenizer(files: Files, folder: Path) -> CLIPTokenizer:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return CLIPTokenizer.from_pretrained(folder)


def ids(theirs: StableDiffusionPipeline, words: CLIPTokenizer, prompts: list[str]) -> Tensor:
    text = theirs.maybe_convert_prompt(prompts, words)
    return words(text, padding="max_length", truncation=True, max_length=16, return_tensors="pt").input_ids


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_text_encoder_reads_the_word_as_in_diffusers(count: int, layout: str, checkpoint: Path, tmp_path: Path) -> None:
    theirs = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    first = write({"<cat-toy>": vectors(count)}, tmp_path / "learned_embeds.safetensors")
    second = write(
        of_2022(vectors(2)) | {"name": "pears"}, tmp_path / "second.pt"
    )  # "pears" is no word: "pears</w>" is
    theirs.load_textual_inversion(first)
    theirs.load_textual_inversion(second)
    encoder, files = text(checkpoint)
    files = laid_out(files, layout)
    for path in (first, second):
        files = add_embedding(encoder, files, read_embedding(path))
    words = tokenizer(files, tmp_path / "tokenizer")
    if "tokenizer.json" in files:  # which others read alone
        alone = Backend.from_str(files["tokenizer.json"].decode())
        assert [encoding.ids for encoding in alone.encode_batch(PROMPTS)] == words(PROMPTS).input_ids
    found = ids(theirs, words, PROMPTS)
    assert torch.equal(found, ids(theirs, theirs.tokenizer, PROMPTS))
    assert (found >= 555).sum() >= 3  # the new words are in them
    expected = theirs.text_encoder(found)
    output = encoder(found)
    assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(output.pooler_output, expected.pooler_output)
    assert encoder.config.vocab_size == theirs.text_encoder.config.vocab_size == 555 + count + 2


@torch.no_grad()
def test_second_text_encoder_of_xl(checkpoint: Path, tmp_path: Path) -> None:
    theirs = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    _, files = text(checkpoint)
    config = theirs.text_encoder.config.to_dict() | {"hidden_size": 32, "projection_dim": 20}
    encoder = CLIPTextModelWithProjection(CLIPTextConfig(**config)).eval()
    oracle = copy.deepcopy(encoder)
    parts = {"clip_l": vectors(2), "clip_g": vectors(2, 32)}
    embedding = read_embedding(write(parts, tmp_path / "<cat-toy>.safetensors"))
    words = tokenizer(add_embedding(encoder, files, embedding, "text_encoder_2"), tmp_path / "ours")
    theirs.load_textual_inversion(parts["clip_g"], "<cat-toy>", tokenizer=theirs.tokenizer, text_encoder=oracle)
    found = ids(theirs, words, PROMPTS)
    assert torch.equal(found, ids(theirs, theirs.tokenizer, PROMPTS))
    assert torch.equal(encoder(found).text_embeds, oracle(found).text_embeds)
    assert torch.equal(encoder(found).last_hidden_state, oracle(found).last_hidden_state)


@torch.no_grad()
def test_checkpoint_with_the_word_is_saved_and_loaded(checkpoint: Path, tmp_path: Path) -> None:
    loaded = load(checkpoint)
    encoder = loaded.text_encoders["text_encoder"]
    embedding = Embedding("<cat-toy>", {"": vectors(3)}, "style.pt", "")
    files = add_embedding(encoder, loaded.tokenizers["tokenizer"], embedding)
    dataclasses.replace(loaded, tokenizers={"tokenizer": files}).save(tmp_path)
    again = load(tmp_path)
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    found = ids(theirs, theirs.tokenizer, PROMPTS)
    assert found[0].tolist().count(555) == 1  # "a red <Cat-toy> apple"
    assert {555, 556, 557} <= set(found[1].tolist())
    expected = encoder(found).last_hidden_state
    assert torch.equal(again.text_encoders["text_encoder"](found).last_hidden_state, expected)
    assert torch.equal(theirs.text_encoder(found).last_hidden_state, expected)


@pytest.mark.parametrize(("spare", "count", "rows"), [(0, 5, 560), (5, 2, 560), (5, 5, 560), (5, 6, 561)])
@torch.no_grad()
def test_rows_to_spare_are_used(spare: int, count: int, rows: int, checkpoint: Path) -> None:
    """Some text encoders have more rows than their tokenizer has words: here 555."""
    encoder, files = text(checkpoint)
    encoder.resize_token_embeddings(555 + spare)
    before = encoder.get_input_embeddings().weight
    add_embedding(encoder, files, Embedding("x y", {"": vectors(count)}, "x.pt", ""))
    weight = encoder.get_input_embeddings().weight
    assert len(weight) == rows
    assert torch.equal(weight[:555], before[:555])
    assert torch.equal(weight[555 : 555 + count], vectors(count))
    assert torch.equal(weight[555 + count :], before[555 + count :])


NO_FILES: dict[str, tuple[str, Any, str]] = {
    "no file": ("a.safetensors", None, "missing file; expected .*a.safetensors"),
    "no tensors": ("a.safetensors", b"no tensors", "cannot read .*a.safetensors"),
    "no pickle": ("a.pt", b"no tensors", "cannot read .*a.pt"),
    "a pickle that runs code": ("a.pt", {"<cat>": print}, "cannot read .*a.pt"),
    "a LoRA": ("a.safetensors", {"x.lora_A.weight": vectors(1), "x.lora_B.weight": vectors(1)}, "is a LoRA, not"),
    "nothing": ("a.pt", {}, "no textual inversion"),
    "no vectors": ("a.pt", {"<cat>": 3}, "no textual inversion; expected vectors of one word; found <cat>"),
    "no matrix": ("a.pt", {"<cat>": torch.ones(1, 1, WIDTH)}, "no textual inversion"),
    "a list": ("a.pt", [vectors(1)], "no textual inversion.*found list"),
    "two words": ("a.pt", {"string_to_param": {"*": vectors(1), "+": vectors(1)}}, "no textual inversion"),
    "empty": ("a.pt", {"<cat>": torch.ones(0, WIDTH)}, "empty or not finite"),
    "not finite": ("a.pt", {"<cat>": torch.full((1, WIDTH), torch.nan)}, "empty or not finite"),
    "an image": ("style.png", b"\x89PNG\r\n\x1a\n" + bytes(40), r"cannot read .*style\.png; .*found a PNG image"),
    "a WebP image": ("style.webp", b"RIFF" + bytes(40), "found a WebP image"),
    "overflowing": ("a.pt", {"<cat>": torch.full((1, WIDTH), 1e38)}, "empty or not finite"),
    "of no width": ("a.pt", {"<cat>": torch.ones(3, 0)}, "empty or not finite"),
    "whole numbers": ("a.pt", {"<cat>": torch.ones(1, WIDTH).long()}, "not floating-point numbers; found torch.int64"),
    "complex": ("a.pt", {"<cat>": torch.ones(1, WIDTH) * 1j}, "not floating-point numbers"),
    "more than it holds": ("a.pt", {"<cat>": torch.ones(1).expand(10**6, 10**6)}, "more than the file holds"),
    "sparse": ("a.pt", {"<cat>": torch.ones(1, WIDTH).to_sparse()}, "unsupported tensor"),
    "space around": ("a.pt", {" cat": vectors(1)}, "invalid token .*found ' cat'"),
}


@pytest.mark.parametrize("name", list(NO_FILES))
def test_file_is_refused(name: str, tmp_path: Path) -> None:
    file, content, message = NO_FILES[name]
    if isinstance(content, bytes):
        (tmp_path / file).write_bytes(content)
    elif content is not None:
        write(content, tmp_path / file)
    with pytest.raises(LdmrtError, match=message):
        read_embedding(tmp_path / file)


MISFITS: dict[str, tuple[Embedding, str]] = {
    "width": (Embedding("new", {"": vectors(1, 32)}, "a.pt", ""), "a.pt is of another width; expected 24 .*; found 32"),
    "too many": (Embedding("new", {"": vectors(15)}, "a.pt", ""), "more vectors than a prompt; expected at most 14"),
    "not one word each": (
        Embedding("<a><c>", {"": vectors(3)}, "a.pt", ""),
        "'<a><c>' is not one word for each vector",
    ),
    "one of several": (Embedding("<a><dog>", {"": vectors(2)}, "a.pt", ""), "'<dog>' is already in the vocabulary"),
    "encoder": (Embedding("new", {"text_encoder_2": vectors(1)}, "a.pt", ""), "a.pt holds no vectors for it"),
    "a byte": (Embedding("b", {"": vectors(1)}, "a.pt", ""), "'b' is already in the vocabulary"),
    "a word": (Embedding("red</w>", {"": vectors(1)}, "a.pt", ""), "'red</w>' is already in the vocabulary"),
    "the end": (Embedding("<|EndOfText|>", {"": vectors(1)}, "a.pt", ""), "'<|EndOfText|>' is already"),
    "again": (Embedding("<dog>", {"": vectors(1)}, "a.pt", ""), "'<dog>' is already in the vocabulary"),
    "again in capitals": (Embedding("<DOG>", {"": vectors(1)}, "a.pt", ""), "'<DOG>' is already in the vocabulary"),
    "its second vector": (Embedding("<dog>_1", {"": vectors(1)}, "a.pt", ""), "'<dog>_1' is already in the vocabulary"),
    "one vector more": (Embedding("<dog>_2", {"": vectors(1)}, "a.pt", ""), "one more vector of '<dog>'"),
    "its last": (Embedding("cat_7", {"": vectors(2)}, "a.pt", ""), "'cat_7_1' is already"),
    "it takes the next for its own": (Embedding("cat_7", {"": vectors(1)}, "a.pt", ""), "'cat_7_1' is already"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", list(MISFITS))
def test_misfit_is_refused_and_nothing_changed(name: str, layout: str, checkpoint: Path) -> None:
    embedding, message = MISFITS[name]
    encoder, files = text(checkpoint)
    files = laid_out(files, layout)
    for token, count in (("<dog>", 2), ("cat_7_1", 1)):
        files = add_embedding(encoder, files, Embedding(token, {"": vectors(count)}, "old.pt", ""))
    before = encoder.get_input_embeddings().weight
    with pytest.raises(LdmrtError, match=message.replace("|", r"\|")):
        add_embedding(encoder, files, embedding)
    assert encoder.get_input_embeddings().weight is before
    assert encoder.config.vocab_size == len(before) == 558


def test_tokenizer_that_is_broken(checkpoint: Path) -> None:
    encoder, files = text(checkpoint)
    embedding = Embedding("new", {"": vectors(1)}, "a.pt", "")
    for change, message in (
        ({"vocab.json": b"{"}, r"cannot read vocab\.json"),
        ({"vocab.json": b'{"a": 0, "b": 7000}'}, "leave gaps or do not fit"),
        ({"added_tokens.json": b'{"x": null}'}, "cannot read the added tokens"),
        ({"added_tokens.json": json.dumps({f"x{i}": 555 + i for i in range(3)}).encode()}, "leave gaps or do not fit"),
    ):
        with pytest.raises(LdmrtError, match=message):
            add_embedding(encoder, files | change, embedding)
    with pytest.raises(LdmrtError, match="missing files"):
        add_embedding(encoder, {}, embedding)


def test_encoder_that_reads_berts_tokens_takes_no_words() -> None:
    encoder = build("text_encoder", "LDMBertModel", {"d_model": WIDTH, "encoder_layers": 1})
    assert isinstance(encoder, LDMBert)
    embedding = Embedding("new", {"": vectors(1)}, "a.pt", "")
    tokenizers: dict[str, Files] = {"tokenizer": {"vocab.txt": b""}}
    with pytest.raises(LdmrtError, match=r"a\.pt cannot be added to this text encoder; .*; found LDMBertModel"):
        add_embeddings({"text_encoder": encoder}, tokenizers, [embedding])
    assert tokenizers == {"tokenizer": {"vocab.txt": b""}}
    assert add_embeddings({"text_encoder": encoder}, tokenizers, []) == []
