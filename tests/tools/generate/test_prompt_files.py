"""`ldmrt generate --prompts` draws the lines of a file as if they stood on the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldmrt.runtime import LdmrtError
from ldmrt.tools.commands.generate import read_prompts


def test_a_line_is_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa fox\n\n  \na (red:1.2) apple\r\n", encoding="utf-8")
    assert read_prompts(path) == ("a fox", "a (red:1.2) apple")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.txt", "\n \n", "has no prompts"),
        ("a.md", "a fox", "no known kind"),
    ],
)
def test_what_is_no_file_of_prompts(name: str, content: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(LdmrtError, match=problem):
        read_prompts(tmp_path / name)


def test_they_follow_those_of_the_command_line(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("two pears\na red apple\n")
    how = ("--steps", 1, "--seed", 3)
    file, line = tmp_path / "file.png", tmp_path / "line.png"
    assert ldmrt("generate", bundle, "a lemon", "--prompts", tmp_path / "prompts.txt", *how, "-o", file).code == 0
    assert ldmrt("generate", bundle, "a lemon", "two pears", "a red apple", *how, "-o", line).code == 0
    with Image.open(file) as found, Image.open(line) as expected:
        assert found.tobytes() == expected.tobytes()
    assert len(list(tmp_path.glob("file-*.png"))) == 3


LINES = (
    '{"prompt": "two pears", "seed": 9, "count": 2}\n\n{"prompt": "a lemon", "steps": 1}\n'
    '{"prompt": ["a fox", "a cat"], "scheduler": "euler", "guidance": 3, "negative_prompt": "blue"}\n'
)


def test_whole_requests_are_those_of_batch(
    ldmrt: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text(LINES)
    how = ("--steps", 2, "--seed", 3)
    ran = ldmrt("generate", bundle, "--prompts", "p.jsonl", *how, "-o", "a.png")
    assert (ran.code, ran.out.split()) == (0, ["a.png", *(f"a-{i:02d}.png" for i in range(5))]), ran.err
    assert ldmrt("batch", bundle, "p.jsonl", "batch", *how).code == 0
    index = [json.loads(line) for line in Path("batch/index.jsonl").read_text().splitlines()]
    files = [Path("batch", file) for entry in index for file in entry.get("files", ())]
    for number, file in enumerate(files):
        with Image.open(f"a-{number:02d}.png") as found, Image.open(file) as expected:
            assert found.tobytes() == expected.tobytes(), number
            assert (found.info["parameters"], found.info["ldmrt"]) == (
                expected.info["parameters"],
                expected.info["ldmrt"],
            )
    for name in ("a.png", "a-04.png"):  # the grid, and an image
        again = ldmrt("replay", name, "--bundle", bundle)
        assert (again.code, again.out.startswith("identical")) == (0, True), again.err


def test_requests_of_several_sizes_and_of_one_image(ldmrt: Any, bundle: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "a.png"
    path.write_text('{"prompt": "a fox", "width": 16}\n{"prompt": "a fox", "width": 24}\n')
    words = ("generate", bundle, "--prompts", path, "--steps", 1, "-o", out)
    assert ldmrt(*words).out.split() == [str(tmp_path / f"a-0{i}.png") for i in range(2)]
    assert [Image.open(tmp_path / f"a-0{i}.png").width for i in range(2)] == [16, 24]
    assert not out.exists()
    path.write_text('{"prompt": "a fox"}\n')
    assert ldmrt(*words).out.split() == [str(out)]


@pytest.mark.parametrize(
    ("line", "words", "problem"),
    [
        ('{"prompt": "a fox"', (), "line 2 of p.jsonl: "),
        ('{"prompt": "a fox", "stepz": 3}', (), "line 2 of p.jsonl: unknown argument 'stepz', did you mean 'steps'?"),
        ('{"prompt": "a fox", "steps": 0}', (), "line 2 of p.jsonl: invalid steps"),
        ('{"prompt": "a fox", "width": 65}', (), "line 2 of p.jsonl: invalid width"),
        ('{"prompt": "a fox", "scheduler": "eulr"}', (), "line 2 of p.jsonl: "),
        ('{"prompt": "a fox", "loras": {"style": 1}}', (), "line 2 of p.jsonl: no LoRA 'style' is loaded"),
        ('{"steps": 3}', (), "line 2 of p.jsonl: no prompt"),
        ("\n" * 1024, (), "p.jsonl is too long; expected at most 1024 lines"),
        ('{"prompt": "a", "count": 2000}', (), "p.jsonl asks for too many images; expected at most 1024 images"),
        ("", ("a fox",), "PROMPTS cannot be combined with p.jsonl, which holds whole requests"),
        ("", ("--save-steps",), "--save-steps cannot be combined with p.jsonl"),
    ],
)
def test_an_invalid_line_is_named_before_anything_is_drawn(
    ldmrt: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, words: Any, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text(f'{{"prompt": "a fox"}}\n{line}\n')
    ran = ldmrt("generate", bundle, *words, "--prompts", "p.jsonl", "-o", "a.png")
    assert (ran.code, problem in ran.error) == (2, True), ran.error
    assert list(tmp_path.iterdir()) == [tmp_path / "p.jsonl"]
