"""`ldmrt generate --prompts` draws the lines of a file as if they stood on the command line."""

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
        ("a.jsonl", "{}", "holds whole requests"),
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
