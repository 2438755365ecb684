"""Read the rows of a metadata.jsonl or metadata.csv: which image has which captions, and what is wrong with lines."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import decode_json, read_bytes

METADATA = "metadata.jsonl"
TABLE = "metadata.csv"
CAPTION = "text"  # the column of captions
LICENCE = ("license", "licence")  # columns that may state an image's licence
LARGEST = 1 << 29  # bytes of a metadata.jsonl: some millions of captions
LISTED = 20  # problems that an error names before it only counts them
LONGEST = 200  # characters of an invalid value that an error shows


@dataclass(frozen=True)
class Row:
    """Names one captioned image: its line of the metadata, its file inside the folder, its caption and perhaps others.

    The line is 0 where there is no metadata.
    """

    line: int
    file_name: str
    text: str
    others: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """All captions."""
        return (self.text, *self.others)


@dataclass(frozen=True)
class Problem:
    """States what is wrong with one line of the metadata, or with the image `file_name` that its row names.

    The line is 0 where there is no metadata.
    """

    line: int
    found: str
    file_name: str | None = None


def read_metadata(path: Path, column: str = CAPTION, *, empty: bool = False) -> tuple[list[Row], list[Problem]]:
    """Read every line of a metadata.jsonl, or every row of a metadata.csv.

    Blank lines and byte-order marks are skipped. No image is opened.

    Args:
        path: The file, in the folder of the images.
        column: The key, or the column, of the captions; in metadata.jsonl a caption may be a list of several.
        empty: Whether a caption may be empty.

    Returns:
        The rows, and what is wrong with lines that are none, or with the file that a row names.

    Raises:
        LdmrtError: The file is missing, too large or not UTF-8.
    """
    rows, problems, root = list[Row](), list[Problem](), path.parent.resolve()
    for number, fields in _lines(path, column, problems):
        try:
            row = row_of(number, fields, column, empty=empty)
        except InvalidRow as invalid:
            problems.append(Problem(number, str(invalid)))
            continue
        rows.append(row)
        if misplaced := _wrong_place(root, row.file_name):
            problems.append(Problem(number, misplaced, row.file_name))
    return rows, problems


def read_licences(path: Path) -> dict[int, str]:
    """Read the licence that each line of a metadata.jsonl or metadata.csv states, by its number.

    Args:
        path: The file. Lines without a licence, and those that are damaged, are left out.

    Raises:
        LdmrtError: The file is missing, too large or not UTF-8.
    """
    found = dict[int, str]()
    for number, fields in _lines(path, "file_name", []):
        stated = [fields[name] for name in LICENCE if name in fields] if isinstance(fields, dict) else []
        if stated and isinstance(stated[0], str) and stated[0].strip():
            found[number] = stated[0].strip()
    return found


def _lines(path: Path, column: str, problems: list[Problem]) -> Iterator[tuple[int, object]]:
    """Yield what each line of a metadata file holds, with its number; note those that are damaged."""
    text = read_text(path, LARGEST).replace("\r\n", "\n").replace("\r", "\n")
    return _records(text, column, problems) if path.name == TABLE else _objects(text, problems)


def read_text(path: Path, limit: int) -> str:
    """Read a text of at most `limit` bytes; an `LdmrtError` names the line that is not UTF-8."""
    try:
        content = read_bytes("data", path, limit)
        return content.decode()
    except UnicodeDecodeError as error:
        lines_before = content.count(b"\n", 0, error.start)
        found = f"byte {content[error.start]:#x}"
        raise LdmrtError("data", f"{path} line {lines_before + 1}: not UTF-8", found=found) from None


def _objects(text: str, problems: list[Problem]) -> Iterator[tuple[int, object]]:
    """Yield the values of lines of JSON with their numbers; note lines that are none."""
    # str.splitlines would also split at characters that a caption may hold
    for number, line in enumerate(text.split("\n"), 1):
        if not (stripped := line.strip("\ufeff \t")):
            continue
        try:
            yield number, decode_json(stripped)
        except json.JSONDecodeError as error:
            problems.append(Problem(number, f"not JSON ({error.msg} at character {error.colno})"))
        except ValueError as error:  # a number of thousands of digits, thousands of brackets
            problems.append(Problem(number, f"not JSON ({str(error)[:LONGEST]})"))


def _records(text: str, column: str, problems: list[Problem]) -> Iterator[tuple[int, object]]:
    """Yield the rows of a table below its header, by column, with the lines they begin at; note those that are none."""
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline="\n"), strict=True)
    header, number = list[str](), 1
    try:
        for record in reader:
            number, begin = reader.line_num + 1, number
            if not "".join(record).strip():
                continue
            if not header:
                header = record
                if lacking := [name for name in ("file_name", column) if name not in header]:
                    problems.append(Problem(begin, f"no column {' or '.join(lacking)}, found {_shown(header)}"))
                    return
            elif len(record) != len(header):
                problems.append(Problem(begin, f"{len(record)} fields, expected {len(header)}"))
            else:
                yield begin, dict(zip(header, record, strict=True))
    except csv.Error as error:
        problems.append(Problem(number, f"not CSV ({error})"))


class InvalidLines(LdmrtError):
    """Several lines of the metadata, or images without it, cannot be used; the message lists them."""

    def __init__(self, listed: Path, problems: Sequence[Problem], hint: str | None) -> None:
        """Put one line for each problem between the message and its hint."""
        what = "lines" if any(problem.line for problem in problems) else "images"
        super().__init__("data", f"{len(problems)} {what} of {listed} cannot be used", hint=hint)
        message, *rest = str(self).splitlines()
        self.args = ("\n".join([message, *listing(problems), *rest]),)


def refuse(listed: Path, problems: Sequence[Problem], hint: str | None = None) -> LdmrtError:
    """Return the error that names each problem of a file, or of a folder of images without metadata."""
    if len(problems) > 1:
        return InvalidLines(listed, problems, hint)
    (problem,) = problems
    if not problem.line:
        return LdmrtError("data", f"an image of {listed} cannot be used: {problem.found}", hint=hint)
    return LdmrtError("data", f"{listed} line {problem.line}: {problem.found}", hint=hint)


def listing(problems: Sequence[Problem]) -> list[str]:
    """Write one indented line for each problem, the first of them where there are many."""
    problems = sorted(problems, key=lambda problem: problem.line)
    lines = [f"  {f'line {each.line}: ' if each.line else ''}{each.found}" for each in problems[:LISTED]]
    return lines + [f"  and {len(problems) - LISTED} more"] * (len(problems) > LISTED)


class InvalidRow(Exception):
    """A line, or an image without metadata, is no row; the message says why."""


def row_of(number: int, row: object, column: str, *, empty: bool = False) -> Row:
    """Check the fields of one line, whose captions may be `empty` or not, or raise `InvalidRow`."""
    if not isinstance(row, dict):
        raise InvalidRow(f"expected an object with file_name and {column}, found {_shown(row)}")
    name = _text(row, "file_name")
    owner, captions = f" of {name}", row.get(column)
    if isinstance(captions, list) and captions:
        first, *others = (
            _text({f"{column}[{i}]": text}, f"{column}[{i}]", owner, empty=empty) for i, text in enumerate(captions)
        )
        return Row(number, name, first, tuple(others))
    return Row(number, name, _text(row, column, owner, empty=empty))


def _text(row: Mapping[str, object], key: str, owner: str = "", *, empty: bool = False) -> str:
    """Return a string of a row, which may be `empty` or not, or raise `InvalidRow`."""
    if key not in row:
        raise InvalidRow(f"no {key}{owner}")
    value = row[key]
    if not isinstance(value, str):
        raise InvalidRow(f"{key}{owner} is {_shown(value)}, expected a string")
    if not value.strip() and not empty:
        raise InvalidRow(f"{key}{owner} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRow(f"{key}{owner} holds half a surrogate pair") from None
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
