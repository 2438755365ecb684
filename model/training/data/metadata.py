"""Read the rows of a metadata.jsonl: which image has which caption, and what is wrong with invalid lines."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import decode_json, read_bytes

METADATA = "metadata.jsonl"
LARGEST = 1 << 29  # bytes of a metadata.jsonl: some millions of captions
LISTED = 20  # problems that an error names before it only counts them
LONGEST = 200  # characters of an invalid value that an error shows


@dataclass(frozen=True)
class Row:
    """Names one captioned image: its line of metadata.jsonl, its file inside the folder, and its caption."""

    line: int
    file_name: str
    text: str


@dataclass(frozen=True)
class Problem:
    """States what is wrong with one line of metadata.jsonl, or with the image `file_name` that its row names."""

    line: int
    found: str
    file_name: str | None = None


def read_metadata(folder: Path) -> tuple[list[Row], list[Problem]]:
    """Read every line of a folder's metadata.jsonl.

    Blank lines and byte-order marks are skipped. No image is opened.

    Returns:
        The rows, and what is wrong with lines that are none, or with the file that a row names.

    Raises:
        LdmrtError: The file is missing, too large or not UTF-8.
    """
    path = folder / METADATA
    try:
        content = read_bytes("data", path, LARGEST)
        text = content.decode()
    except UnicodeDecodeError as error:
        lines_before = content.count(b"\n", 0, error.start)
        found = f"byte {content[error.start]:#x}"
        raise LdmrtError("data", f"{path} line {lines_before + 1}: not UTF-8", found=found) from None
    rows, problems, root = list[Row](), list[Problem](), folder.resolve()
    # str.splitlines would also split at characters that a caption may hold
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        if not (stripped := line.strip("\ufeff \t")):
            continue
        try:
            row = _row(number, stripped)
        except _Invalid as invalid:
            problems.append(Problem(number, str(invalid)))
            continue
        rows.append(row)
        if misplaced := _wrong_place(root, row.file_name):
            problems.append(Problem(number, misplaced, row.file_name))
    return rows, problems


class InvalidLines(LdmrtError):
    """Several lines of metadata.jsonl cannot be used; the message lists them."""

    def __init__(self, folder: Path, problems: Sequence[Problem], hint: str | None) -> None:
        """Put one line for each problem between the message and its hint."""
        super().__init__("data", f"{len(problems)} lines of {folder / METADATA} cannot be used", hint=hint)
        message, *rest = str(self).splitlines()
        self.args = ("\n".join([message, *listing(problems), *rest]),)


def refuse(folder: Path, problems: Sequence[Problem], hint: str | None = None) -> LdmrtError:
    """Return the error that names each problem."""
    if len(problems) > 1:
        return InvalidLines(folder, problems, hint)
    return LdmrtError("data", f"{folder / METADATA} line {problems[0].line}: {problems[0].found}", hint=hint)


def listing(problems: Sequence[Problem]) -> list[str]:
    """Write one indented line for each problem, the first of them where there are many."""
    problems = sorted(problems, key=lambda problem: problem.line)
    lines = [f"  line {problem.line}: {problem.found}" for problem in problems[:LISTED]]
    return lines + [f"  and {len(problems) - LISTED} more"] * (len(problems) > LISTED)


class _Invalid(Exception):
    """A line is not a row; the message says why."""


def _row(number: int, line: str) -> Row:
    """Parse one line, or raise `_Invalid`."""
    try:
        row = decode_json(line)
    except json.JSONDecodeError as error:
        raise _Invalid(f"not JSON ({error.msg} at character {error.colno})") from None
    except ValueError as error:  # a number of thousands of digits, thousands of brackets
        raise _Invalid(f"not JSON ({str(error)[:LONGEST]})") from None
    if not isinstance(row, dict):
        raise _Invalid(f"expected an object with file_name and text, found {_shown(row)}")
    name = _text(row, "file_name")
    return Row(number, name, _text(row, "text", f" of {name}"))


def _text(row: Mapping[str, object], key: str, owner: str = "") -> str:
    """Return a string of a row that is not empty, or raise `_Invalid`."""
    if key not in row:
        raise _Invalid(f"no {key}{owner}")
    value = row[key]
    if not isinstance(value, str):
        raise _Invalid(f"{key}{owner} is {_shown(value)}, expected a string")
    if not value.strip():
        raise _Invalid(f"{key}{owner} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Invalid(f"{key}{owner} holds half a surrogate pair") from None
    return value


def _wrong_place(root: Path, name: str) -> str | None:
    """Say what is wrong with a name that should be of a plain file inside the resolved folder `root`, if anything."""
    try:
        path = (root / name).resolve()
        inside, there, plain = path.is_relative_to(root), path.exists(), path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, with a NUL, a loop of links
        return f"{_shown(name)} is not a valid file name"
    if not inside:
        return f"{_shown(name)} is outside the folder"
    if not there:
        return f"{_shown(name)} is missing"
    return None if plain else f"{_shown(name)} is not a file"


def _shown(value: object) -> str:
    """Write a value as JSON for a message, its beginning where it is long."""
    text = json.dumps(value, ensure_ascii=False).encode(errors="replace").decode()
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
