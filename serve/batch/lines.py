"""Read a file of prompts line by line: JSON objects (.jsonl), or texts (.txt)."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import plain_file

JSON, TEXT = (".jsonl", ".ndjson"), (".txt",)
LINE_BYTES = 1 << 20  # of one line: a request with many prompts has some kilobytes
DIGITS = 16  # hexadecimal ones of a digest
GZIP = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """Holds a line of a file.

    Attributes:
        number: Which line it is; the first is 1.
        text: What stands in it, without its end.
        digest: Of all lines up to this one, without their ends.
    """

    number: int
    text: str
    digest: str

    @property
    def is_blank(self) -> bool:
        """Whether nothing but spaces stands in it."""
        return not self.text.strip()


def is_json(path: Path) -> bool:
    """Tell whether the lines of a file are JSON objects; else they are prompts."""
    return path.suffix.lower() in JSON


def check_file(path: Path) -> int:
    """Read a file once from beginning to end, and return how many lines it has.

    Raises:
        LdmrtError: It is missing or no regular file, its name ends in something else, it holds nothing, is not UTF-8,
            or has a line of more than `LINE_BYTES`.
    """
    count = filled = 0
    with _opened(path) as file:
        for line in _lines(path, file):
            count += 1
            filled += not line.is_blank
    if not filled:
        raise LdmrtError("batch", f"{path} has no prompts", expected="a prompt or a JSON object in each line")
    return count


def read_lines(path: Path, count: int) -> Iterator[Line]:
    """Yield the first lines of a file that `check_file` has read."""
    with _opened(path) as file:
        yield from islice(_lines(path, file), count)


def _opened(path: Path) -> IO[bytes]:
    """Open a file; an `LdmrtError` says why it is none of prompts."""
    plain_file("batch", path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise LdmrtError("batch", f"cannot read {path}", found=error.strerror) from None
    begin = file.read(len(BOM))
    if begin.startswith(GZIP):
        file.close()
        raise LdmrtError("batch", f"{path} is compressed", expected="plain text", hint=f"gunzip {path}")
    if path.suffix.lower() not in (*JSON, *TEXT):
        file.close()
        expected = f"a name that ends in {JSON[0]} (JSON objects) or {TEXT[0]} (prompts)"
        raise LdmrtError("batch", f"{path} is of no known kind", expected=expected)
    file.seek(len(BOM) if begin == BOM else 0)
    return file


def _lines(path: Path, file: IO[bytes]) -> Iterator[Line]:
    """Yield the lines of a file."""
    digest, number = hashlib.sha256(), 0
    while content := file.readline(LINE_BYTES + 1):
        number += 1
        if len(content) > LINE_BYTES:
            problem = f"line {number} of {path} is too long"
            raise LdmrtError("batch", problem, expected=f"at most {LINE_BYTES} bytes")
        content = content.removesuffix(b"\n").removesuffix(b"\r")
        digest.update(b"%d:" % len(content))
        digest.update(content)
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            found = f"the byte 0x{content[error.start]:02x} in line {number}"
            raise LdmrtError("batch", f"cannot read {path}", expected="UTF-8", found=found) from None
        yield Line(number, text, digest.hexdigest()[:DIGITS])
