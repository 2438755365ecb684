"""Styles and wildcards: texts are put together before a prompt is read, the same on every machine."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.pipeline.prompts.styles import Style, chosen, read_styles, styled
from ldmrt.runtime.pipeline.prompts.wildcards import DEEPEST, Wildcards
from ldmrt.tools.options.prompts import worded

STYLES = 'name,prompt,negative_prompt\nnoto,"{prompt}, noto style, ""flat""",blurred\n quiet,,\nloud,very loud,\n'


def notes(path: Path) -> Any:
    with Image.open(path) as image:
        return json.loads(image.text["ldmrt"])


def test_a_style_stands_around_a_prompt_or_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "styles.csv"
    path.write_text("\ufeff" + STYLES, encoding="utf-8")
    styles = read_styles(path)
    both = [one.prompt for one in chosen(styles, ["noto", "loud"])]
    assert styled("a fox", both) == 'a fox, noto style, "flat", very loud'
    assert styled("", [styles["loud"].prompt]) == "very loud"
    assert styled(" a fox ", [""]) == "a fox"
    with pytest.raises(LdmrtError, match="no such style 'lout', did you mean 'loud'"):
        chosen(styles, ["lout"])


# As `load_from_csv` of the web UI 1.10 reads them: it knows no column of negative prompts but negative_prompt.
READ = {
    "name,text\na,b\n": {"a": Style("b")},
    'name, text, negative_text\nnoto, "{prompt}, flat", blurred\n': {"noto": Style("{prompt}, flat")},
    "name,text,negative_prompt\na,b,c\n": {"a": Style("b", "c")},
    "name,prompt,text\na,b,c\n": {"a": Style("b")},
    "name,prompt,negative_prompt\n# flat ones,,\n,x,y\na\nb,c,d,e\n": {"a": Style(), "b": Style("c", "d")},
}


@pytest.mark.parametrize("text", READ)
def test_styles_of_every_age_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "styles.csv").write_text(text)
    assert read_styles(tmp_path / "styles.csv") == READ[text]


@pytest.mark.parametrize(("text", "column"), [("prompt,text\n", "name"), ("name,negative_prompt\n", "prompt")])
def test_a_missing_column_is_said(tmp_path: Path, text: str, column: str) -> None:
    (tmp_path / "styles.csv").write_text(text)
    with pytest.raises(LdmrtError, match=f"the column {column} of styles is missing; expected name, prompt, negative"):
        read_styles(tmp_path / "styles.csv")


def test_wildcards_follow_from_the_seed(tmp_path: Path) -> None:
    (tmp_path / "colour.txt").write_text("# warm\nred\n\nyellow\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "thing.txt").write_text("__colour__ apple\n__colour__ fox\n")
    (tmp_path / "again.txt").write_text("__again__\n")
    (tmp_path / "empty.txt").write_text("#\n")
    drawn = [Wildcards(tmp_path).expanded("a __deep/thing__, __colour__", seed) for seed in range(40)]
    assert drawn == [Wildcards(tmp_path).expanded("a __deep/thing__, __colour__", seed) for seed in range(40)]
    things = [f"a {one} {thing}, {two}" for one in ("red", "yellow") for thing in ("apple", "fox")
              for two in ("red", "yellow")]  # fmt: skip
    assert {*drawn} == {*things}
    assert Wildcards(tmp_path).expanded("snake__case __ __a", 1) == "snake__case __ __a"
    for prompt, problem in {
        "a __colours__": "no wildcard 'colours'", "__again__": "without an end", "__empty__": "holds no texts",
    }.items():  # fmt: skip
        with pytest.raises(LdmrtError, match=problem):
            Wildcards(tmp_path).expanded(prompt, 0)


def test_wildcards_in_one_another(tmp_path: Path) -> None:
    for i in range(DEEPEST):
        (tmp_path / f"w{i}.txt").write_text(f"__w{i + 1}__\n" if i + 1 < DEEPEST else "red\n")
    assert Wildcards(tmp_path).expanded("__w0__", 0) == "red"
    (tmp_path / "twice.txt").write_text("__twice__ __twice__ " + "a" * 20_000 + "\n")
    with pytest.raises(LdmrtError, match="without an end"):
        Wildcards(tmp_path).expanded("__twice__", 0)


def test_images_of_prompts_with_wildcards(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("red\n")
    given = {"prompt": ("a __c__ fox", "a cat"), "negative_prompt": None, "seed": 3, "count": 2, "image": ["x", "y"],
             "controls": {"canny": (["k", "l"], 0.5)}, "mask": "m", "class_labels": None}  # fmt: skip
    found = worded(given, None, (), tmp_path)
    assert found["prompt"] == ["a red fox", "a red fox", "a cat", "a cat"]
    assert (found["image"], found["mask"], found["count"]) == (["x", "x", "y", "y"], "m", 1)
    assert found["controls"] == {"canny": (["k", "k", "l", "l"], 0.5)}


def test_an_image_holds_the_texts_that_were_drawn(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "styles.csv").write_text(STYLES)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "thing.txt").write_text("apple\nfox\npears\n")
    folder = Wildcards(tmp_path / "words")
    out = tmp_path / "out.png"
    asked = ["generate", bundle, "two __thing__", "-n", 3, "--seed", 5, "--steps", 1, "-o", out]
    files = ["--styles", tmp_path / "styles.csv", "--style", "noto", "--wildcards", tmp_path / "words"]
    ran = ldmrt(*asked, *files, "--negative", "__thing__")
    assert ran.code == 0, ran.err
    for number in range(3):
        found = notes(sorted(tmp_path.glob("out-*.png"))[number])
        assert found["prompt"] == folder.expanded('two __thing__, noto style, "flat"', 5 + number)
        assert found["negative_prompt"] == folder.expanded("__thing__, blurred", 5 + number)
        assert found["seed"] == 5 + number
    alone = ldmrt("generate", bundle, "a", "--style", "noto", "-o", out)
    assert (alone.code, "--style without --styles" in alone.err) == (2, True)
