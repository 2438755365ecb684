"""The runtime reads the words that were added to a tokenizer as diffusers does."""

import json
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

from ldmrt.model.textual_inversion.merge import Embedding, add_embedding
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.errors import LdmrtWarning
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer

from .test_inversion import LAYOUTS, ids, laid_out, text, tokenizer, vectors


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [1, 3])
def test_runtime_reads_what_diffusers_reads(count: int, layout: str, checkpoint: Path, tmp_path: Path) -> None:
    theirs = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    encoder, files = text(checkpoint)
    files = laid_out(files, layout)
    # in lower case: diffusers expands a word of several vectors only as it is written in its file
    files = add_embedding(encoder, files, Embedding("<cat-toy>", {"": vectors(count)}, "a.pt", ""))
    files = add_embedding(encoder, files, Embedding("pears", {"": vectors(2)}, "b.pt", ""))
    words = Tokenizer(files)
    assert words.size == 555 + count + 2
    prompts = ["a red <cat-toy> apple", "two <cat-toy>, <cat-toy>s", "two pears", "", "a red apple"]
    assert words(prompts).tolist() == ids(theirs, tokenizer(files, tmp_path / "t"), prompts).tolist()
    assert words(["<CAT-toy>"]).tolist() == words(["<cat-toy>"]).tolist()


def test_too_long_a_prompt_says_what_is_lost(checkpoint: Path) -> None:
    encoder, files = text(checkpoint)
    files = add_embedding(encoder, files, Embedding("<x>", {"": vectors(10)}, "a.pt", ""))
    with pytest.warns(LdmrtWarning, match="prompt has 20 tokens, 14 fit; skipped: '<x>'"):
        row = Tokenizer(files)(["<x> <x>"])[0]
    assert row.tolist() == [553, *range(555, 565), *range(555, 559), 554]


def test_id_that_is_not_the_next(checkpoint: Path) -> None:
    files = text(checkpoint)[1] | {"added_tokens.json": json.dumps({"<x>": 700}).encode()}
    with pytest.raises(LdmrtError, match="invalid id of the added token '<x>'; expected 555; found 700"):
        Tokenizer(files)
