"""200 prompts made of what parsers trip over are each drawn, or refused by one error, from the text to the pixels."""

import random
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ldmrt.runtime
from ldmrt.runtime import LdmrtError, LdmrtWarning, Pipeline
from ldmrt.runtime.pipeline.prompts.syntaxes import SYNTAXES

PROMPTS = 200
PIECES = [
    "a red apple", "two pears", " ", ",", ".", "\n", "\t", "\\", "|", "_", "~", "!", "AND", " AND ", " BREAK ", "BREAK",
    "\x00", "\ud800", "\udfff", "\U0001f427", "\u202e", "e\u0301" * 20, "\u732b", "<|endoftext|>", "<lora:none:1>",
    "(", ")", "[", "]", "((((", "))))", "[[[[", "]]]]", "(" * 60, "()" * 30, "[]", "'", '"', "+", "-", "++++++++",
    "(apple:1.3)", "(apple:99999999999)", f"(apple:{'9' * 40})", f"(apple:{'9' * 400})", "(apple:-3)", "(a:0)", "(a:.)",
    "(a:1..2)", ":nan", ":1e999", ":-1", " :0.5 ", "[a:b:0.5]", "[a:b:-1]", "[a:b:1e9]", "[a:b:1e999]", "[a|b]", "[|]",
    "[::1]", "(apple)1.5", "(apple)-9", "(apple)1e38", "(pears)0.2", ".and(", ".blend(", ').and(1, 2)', ".swap(", "{}",
    '("a", "b").blend(1, -1)', '("a", "b").blend(0.5, 0.5)', '("a", "b").and()', "{prompt}", "__a__", "0" * 300,
]  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Iterator[Pipeline]:
    with ldmrt.runtime.open(bundle, "onnxruntime", check=False) as opened:
        yield opened


def test_every_prompt_is_drawn_or_refused(pipeline: Pipeline) -> None:
    rng, ends, said = random.Random(11), Counter[tuple[str, bool]](), list[str]()
    for number in range(PROMPTS):
        syntax = SYNTAXES[number % len(SYNTAXES)]
        prompt, negative = ("".join(rng.choices(PIECES, k=rng.randint(0, most))) for most in (5, 3))
        about, asked = (syntax, prompt, negative), {"negative_prompt": negative} if number % 2 else {}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", LdmrtWarning)  # of words that are cut
            try:
                result = pipeline(
                    prompt, **asked, prompt_syntax=syntax, num_inference_steps=1 + number % 2, guidance_scale=3.0,
                    output_type="np",
                )  # fmt: skip
            except LdmrtError as error:
                said.append(str(error))
                ends[syntax, False] += 1
                continue
        assert result.images.shape == (1, 16, 16, 3), about
        assert np.isfinite(result.images).all(), about
        assert np.isfinite(result.latents).all(), about
        ends[syntax, True] += 1
    assert ends.total() == PROMPTS
    assert all(letter.isprintable() or letter == "\n" for text in said for letter in text)  # nothing moves a cursor
    assert all(ends[syntax, True] > 10 for syntax in SYNTAXES), ends
    assert all(ends[syntax, False] > 5 for syntax in SYNTAXES[1:]), ends
