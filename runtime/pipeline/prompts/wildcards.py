"""Replace __name__ in a prompt by a line of the file name.txt in a folder, chosen by the seed of the image."""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from ldmrt.runtime.errors import LdmrtError, first_line

from .fragments import unreadable

NAME = re.compile(r"__([A-Za-z0-9][\w-]*?(?:/[A-Za-z0-9][\w-]*?)*)__", re.ASCII)
DEEPEST = 10  # files that name one another
LONGEST = 100_000  # characters of a text with its wildcards


@dataclass
class Wildcards:
    """The files of a folder, each read when it is first named.

    Attributes:
        folder: The folder.
    """

    folder: Path
    lines: dict[str, list[str]] = field(default_factory=dict)

    def expanded(self, prompt: str, seed: int) -> str:
        """Return a prompt with a line in the place of each name; lines may hold names too.

        The same prompt and seed give the same lines on every machine.

        Raises:
            InvalidRequest: There is no such file, or files name one another without an end.
            LdmrtError: A file cannot be read.
        """
        text, number = prompt, 0
        for _ in range(DEEPEST + 1):
            if NAME.search(text) is None:
                return text
            pieces, last = list[str](), 0
            for match in NAME.finditer(text):
                pieces += [text[last : match.start()], self._line(prompt, match[1], f"{seed} {number}")]
                last, number = match.end(), number + 1
            text = "".join((*pieces, text[last:]))
            if len(text) > LONGEST:
                break
        problem = "wildcards name one another without an end"
        raise unreadable(prompt, max(0, prompt.find("__")), problem, f"at most {DEEPEST} in one another")

    def _line(self, prompt: str, name: str, choice: str) -> str:
        """Return the line of a file that a choice names."""
        path = self.folder / f"{name}.txt"
        if name not in self.lines:
            if not path.is_file():
                raise unreadable(prompt, max(0, prompt.find(f"__{name}__")), f"no wildcard {name!r:.100}", str(path))
            try:
                text = path.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise LdmrtError("--wildcards", f"{path} is no list of texts", found=first_line(error)) from None
            self.lines[name] = [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]
        lines = self.lines[name]
        if not lines:
            raise LdmrtError("--wildcards", f"{path} holds no texts", expected="a text in each line")
        digest = hashlib.sha256(f"{choice} {name}".encode()).digest()
        return lines[int.from_bytes(digest[:8], "big") % len(lines)]
