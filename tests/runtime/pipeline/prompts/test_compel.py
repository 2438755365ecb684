"""compel's syntax is read as the library reads it, and refuses what is not supported by name."""

import contextlib
import random
from typing import Any

import pytest

from ldmrt.runtime import InvalidRequest
from ldmrt.runtime.pipeline.prompts.compel.parser import read_compel
from ldmrt.runtime.pipeline.prompts.compel.tree import Blend, Conjunction

PROMPTS = [
    "a (b)1.3 c", "(a, b++)-- c", "a b+ c", "a (b", "a )b", '"a b"++', "a-b", "well-known+", "a, b. c", "a,b,,c",
    "(a (b)1.2)0.5", "x y.z", "((a))", "a (b)1.3c", "a\\(b\\)", "(a)++b", "(a)+ +", "a ++ b", "1.3", "(a) 1.3",
    "(a)-1", "blend(a)", "(a b).attend(1.2) c", "(a:1.2)", '"a', "a.and()", "(a ,b)+", "(a,b)+ c", "(a.b)+", "",
    '("a","b c").blend(1,0.5)', "(a,b).and()", '("a","b").and(1,2)', '("a+ b", "c = d").and()', '(a "b c"+)0.5',
    '("a","b").blend(1,1,no_normalize)', '("a b" , (c d)).add(0.5, 2)', 'a \\"b\\" c', '"a \\"b\\" c"+', '" "',
    '("", "a").and()', "a+.b", "a .attend(1.1)", '("a")', "(a = b)+", "a\tb+",
]  # fmt: skip


def expected(parser: Any, prompt: str) -> Any:
    def fragments(text: Any) -> list[tuple[str, float]]:
        return [(one.text, one.weight) for one in text.children]

    found = parser.parse_conjunction(prompt)
    parts = [
        ([fragments(one) for one in part.prompts], list(part.weights), part.normalize_weights)
        if type(part).__name__ == "Blend"
        else fragments(part)
        for part in found.prompts
    ]
    return parts, list(found.weights)


def found(prompt: str) -> Any:
    read = read_compel(prompt)
    parts: list[Any] = []
    for part in read.parts:
        texts = part.texts if isinstance(part, Blend) else (part,)
        each = [[(one.text, one.weight) for one in text] for text in texts]
        parts.append((each, list(part.weights), part.normalised) if isinstance(part, Blend) else each[0])
    return parts, list(read.weights)


@pytest.mark.oracle
def test_prompts_are_read_as_compel_reads_them() -> None:
    from compel.prompt_parser import PromptParser

    parser = PromptParser()
    for prompt in PROMPTS:
        wanted = expected(parser, prompt) if prompt else ([[]], [1.0])  # compel writes "" as one empty fragment
        assert found(prompt) == wanted, prompt


@pytest.mark.oracle
def test_fuzzed_prompts_are_read_as_compel_reads_them() -> None:
    """Without quotes and few brackets: compel's parser tries each of them four times, in one another."""
    from compel.prompt_parser import PromptParser

    parser, rng = PromptParser(), random.Random(0)
    pieces = ["a", "b ", "c+", " (a", ")", ")1.2", ")-", "0.5", ",", ".", "\\(", ").attend(1.5)", "++ ", "=", ' "a b"+']
    for _ in range(60):
        prompt = "".join(rng.choices(pieces, k=rng.randint(1, 6)))
        assert found(prompt) == expected(parser, prompt), prompt


UNREADABLE = {
    "a cat.swap(dog)": (".swap() is not supported", ".swap"),
    "a withLora(x, 0.5)": ("a prompt loads no LoRA", "withLora"),
    '("a", "b").blend(1)': ("1 weights of .blend()", "blend"),
    '("a", "b").blend(1, -1)': ("weights of a blend that are 0 together", "blend"),
    '("a", "b").and(1, 2, 3)': ("3 weights of .and()", "and"),
    '("a", "b").and(x)': ("weights that cannot be read", "x)"),
    '("a", "b").and() c': ("text after .and()", "c"),
    "a b\x0bc": ("a character that is no text", "\x0b"),
    f"(a){'9' * 400}": ("a weight out of range", "999"),
    "(" * 60: ("brackets nested too deeply", "("),
}


@pytest.mark.parametrize("prompt", UNREADABLE)
def test_what_cannot_be_read_is_said_with_a_caret(prompt: str) -> None:
    problem, at = UNREADABLE[prompt]
    with pytest.raises(InvalidRequest, match=r"^prompt: ") as raised:
        read_compel(prompt)
    assert problem in raised.value.problem
    place = raised.value.place
    assert place is not None
    assert place.text == prompt
    assert place.text[place.at :].startswith(at)


def test_any_prompt_is_read_or_refused() -> None:
    rng = random.Random(1)
    pieces = [*'()".,+-= ab', "0.4", ".blend(", ".and(", ".swap(", "withLora(", '("a","b")', "\\(", '\\"', "\n"]
    for _ in range(200):
        prompt = "".join(rng.choices(pieces, k=rng.randint(1, 14)))
        with contextlib.suppress(InvalidRequest):
            assert isinstance(read_compel(prompt), Conjunction)
