"""Write text that stays text in Markdown, in YAML and in a shell, whatever characters a file's name holds."""

import json
import re
import shlex
from collections.abc import Iterable, Sequence

SPECIAL = re.compile(r"([\\`*_{}\[\]<>&|~$#!:@])")  # what may begin markup of GitHub's Markdown or of the hub's
Words = Sequence[str]


def visible(text: str) -> str:
    r"""Replace every character that cannot be printed, such as a newline, by the escape that Python shows: \n."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plain(text: str) -> str:
    """Escape a text so that Markdown shows its characters, in one line."""
    return SPECIAL.sub(r"\\\1", visible(text))


def code(text: str) -> str:
    """Write a text as code within a line, or as escaped text where it has a pipe, which code in a table cannot have."""
    text = visible(text)
    if "|" in text:
        return plain(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text[:1] in ("", "`", " ") or text[-1:] in ("`", " ") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def block(text: str, language: str) -> str:
    """Write lines as a block of code."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}{language}\n{text}\n{ticks}"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table, whose cells are Markdown already."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, ["---"] * len(titles), *rows))


def scalar(text: str) -> str:
    """Write a text as a string of YAML, in double quotes, which JSON's are too."""
    return json.dumps(visible(text), ensure_ascii=False)


def quoted(word: str) -> str:
    """Quote a word for a shell; what cannot be printed is written as bytes in bash's and zsh's $'...'."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(_escaped(c) for c in word) + "'"


def _escaped(character: str) -> str:
    if character.isprintable():
        return f"\\{character}" if character in "\\'" else character
    name = "surrogateescape" if "\udc80" <= character <= "\udcff" else "replace"
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", name))


def command(words: Words, options: Iterable[Words], width: int = 100) -> str:
    """Write a command for a shell, with a break between two options where a line would be longer than `width`."""
    lines = [" ".join(map(quoted, words))]
    for option in options:
        text = " ".join(map(quoted, option))
        if len(lines[-1]) + len(text) + 3 > width:
            lines[-1] += " \\"
            lines.append(f"  {text}")
        else:
            lines[-1] += f" {text}"
    return "\n".join(lines)
