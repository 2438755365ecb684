"""`ldmrt generate --prompt-syntax`: weights change an image, and what cannot be read or drawn is said in one error."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

QUICK = ("--steps", 2, "--seed", 3)


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_each_syntax_draws_another_image(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    drawn = {}
    for syntax in ("plain", "a1111", "compel"):
        out = tmp_path / f"{syntax}.png"
        ran = ldmrt("generate", bundle, "a (red apple)1.4 :0.8", *QUICK, "--prompt-syntax", syntax, "-o", out)
        assert ran.code == 0, ran.err
        drawn[syntax] = pixels(out)
        with Image.open(out) as image:
            assert json.loads(image.text["ldmrt"])["prompt_syntax"] == syntax
    assert all(np.abs(drawn["plain"] - drawn[syntax]).max() > 0 for syntax in ("a1111", "compel"))


REFUSED = {
    ("a1111", "a (red:1.2.3) apple"): "prompt: '1.2.3' is no weight",
    ("a1111", "a BREAK b"): "this network reads prompts of one length; expected 16 tokens; found 32",
    ("compel", "a (red)0.5 apple"): "text_encoder: this text encoder takes no mask, which weights below 1 ask for",
    ("compel", '("a", "b").blend(1)'): "prompt: 1 weights of .blend()",
}


@pytest.mark.parametrize(("syntax", "prompt"), REFUSED)
def test_what_cannot_be_drawn_is_one_error(ldmrt: Any, bundle: Path, tmp_path: Path, syntax: str, prompt: str) -> None:
    ran = ldmrt("generate", bundle, prompt, *QUICK, "--prompt-syntax", syntax, "-o", tmp_path / "out.png")
    assert ran.code == 2
    assert REFUSED[syntax, prompt] in ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "out.png").exists()
    if "prompt: " in REFUSED[syntax, prompt]:
        shown, caret = ran.err.splitlines()[1:3]
        assert shown.strip() == prompt
        assert caret.strip() == "^"
    else:
        assert "try: ldmrt export CHECKPOINT BUNDLE --long-prompts" in ran.err


def test_a_line_of_a_file_has_a_syntax_of_its_own(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    lines = [
        {"prompt": "(pears:1.4)", "prompt_syntax": "a1111"},
        {"prompt": "(pears:1..4)", "prompt_syntax": "a1111"},
        {"prompt": "(pears:1..4)"},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ran = ldmrt("batch", bundle, tmp_path / "prompts.jsonl", tmp_path / "out", "--steps", 1)
    assert ran.code == 1, ran.err
    index = [json.loads(line) for line in (tmp_path / "out" / "index.jsonl").read_text().splitlines()]
    assert [entry["status"] for entry in index] == ["done", "failed", "done"]
    assert "'1..4' is no weight" in index[1]["error"]


def test_an_error_names_the_field_that_holds_the_prompt(ldmrt: Any, bundle: Path) -> None:
    ran = ldmrt("generate", bundle, "a cat", "--negative", "(b:1.2.3)", "--prompt-syntax", "a1111")
    assert ran.error.startswith("error: negative_prompt: '1.2.3' is no weight")
