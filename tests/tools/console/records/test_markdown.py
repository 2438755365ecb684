"""Any text stays that text: in a table and a title of Markdown, in YAML, and as a word of a shell."""

import os
import random
import subprocess
from itertools import pairwise

import yaml
from markdown_it import MarkdownIt

from ldmrt.tools.console.training.records.markdown import code, command, plain, scalar, table, visible

LETTERS = "ab `|\\*_<>[]()!#$:&~'\"\n\t\r-=+.,{}@^%\u2028\u0085\ufeff\udcff\u00e9\U0001f34e\x7f"
drawn = random.Random(0)
TEXTS = ["", *("".join(drawn.choices(LETTERS, k=drawn.randint(1, 9))) for _ in range(1000))]


def test_markdown_shows_the_text() -> None:
    parser = MarkdownIt("commonmark").enable("table")
    for text in TEXTS:
        page = f"# {plain(text)}\n\n{table(('', ''), [(code(text), plain(text)), ('x', 'y')])}\n"
        shown: dict[str, list[str]] = {"h1": [], "td": []}
        for opening, inline in pairwise(parser.parse(page)):
            if opening.nesting == 1 and opening.tag in shown:
                shown[opening.tag].append("".join(child.content for child in inline.children or ()).strip())
        expected = visible(text).strip()
        assert shown == {"h1": [expected], "td": [expected, expected, "x", "y"]}, repr(text)


def test_yaml_reads_the_text() -> None:
    page = "\n".join(f"- {scalar(text)}" for text in TEXTS)
    assert yaml.safe_load(page) == [visible(text) for text in TEXTS]


def test_a_shell_reads_the_text() -> None:
    pasted = command(["printf", "%s\\0"], [[text] for text in TEXTS])
    ran = subprocess.run(["bash", "-c", pasted], capture_output=True, check=True)
    assert ran.stdout.split(b"\0")[:-1] == [os.fsencode(text) for text in TEXTS]
    assert all(line.isprintable() for line in pasted.split("\n"))
