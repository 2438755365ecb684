"""The lines of metadata.jsonl: what is read, what is refused, and how it is told."""

import copy
import json
import os
import pickle
from pathlib import Path

import pytest

from ldmrt.model.training.data.captioned import ImageFolder
from ldmrt.model.training.data.metadata import LISTED, Problem, read_metadata, refuse
from ldmrt.runtime import LdmrtError

GOOD = '{"file_name": "a.png", "text": "a cat"}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one file, which no test here decodes."""
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "a.png").write_bytes(b"pixels")
    return inner


def write(folder: Path, *lines: str) -> Path:
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("null", "text of a.png is null"),
        ("3", "is 3"),
        ("1.5", "is 1.5"),
        ("NaN", "is NaN"),
        ("true", "is true"),
        ("[]", r"is \[\]"),
        ('["a", null]', r"text\[1\] of a.png is null"),
        ('["a", ["b"]]', r'text\[1\] of a.png is \["b"\]'),
        ('["", "b"]', r"text\[0\] of a.png is empty"),
        ('{"en": "a"}', r'is \{"en": "a"\}'),
        ('""', "is empty"),
        (r'" \t\n"', "is empty"),
        (r'"\ud83d"', "half a surrogate pair"),
        ("9" * 5000, "digits"),
    ],
)
def test_wrong_caption_is_named_with_its_line(caption: str, found: str, folder: Path) -> None:
    write(folder, GOOD, "", f'{{"file_name": "a.png", "text": {caption}}}', GOOD)
    with pytest.raises(LdmrtError, match=f"metadata.jsonl line 3: .*{found}"):
        ImageFolder.open(folder)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"file_name": "a.png"}', "no text of a.png"),
        ('{"text": "a"}', "no file_name"),
        ('{"file_name": null, "text": "a"}', "file_name is null"),
        ('{"file_name": ["a.png"], "text": "a"}', "file_name is"),
        ('{"file_name": "", "text": "a"}', "file_name is empty"),
        ('{"file_name": ".", "text": "a"}', "not a file"),
        ('{"file_name": "loop", "text": "a"}', "loop"),
        ('{"file_name": "fifo", "text": "a"}', "not a file"),
        (f'{{"file_name": "{"x" * 5000}", "text": "a"}}', "not a valid file name"),
        (r'{"file_name": "a\u0000.png", "text": "a"}', "not a valid file name"),
        ('{"file_name": "../b.png", "text": "a"}', "outside"),
        ('{"file_name": "b.png", "text": "a"}', "missing"),
        ("{", "not JSON .* at character 2"),
        ("[" * 100_000, "not JSON"),
        ("null", "found null"),
        ("[1]", r"found \[1\]"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_line_is_named(line: str, found: str, folder: Path) -> None:
    (folder.parent / "b.png").write_bytes(b"pixels")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "fifo")
    with pytest.raises(LdmrtError, match=f"metadata.jsonl line 2: .*{found}"):
        ImageFolder.open(write(folder, GOOD, line))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n", "\n \t \n", "\n\ufeff\n"])
def test_blank_lines_and_marks_are_skipped(mark: str, end: str, folder: Path) -> None:
    lines = [json.dumps({"file_name": "a.png", "text": text}) for text in ("one", "two", "three")]
    (folder / "metadata.jsonl").write_text(mark + end.join(lines) + end, encoding="utf-8", newline="")
    assert [row.text for row in ImageFolder.open(folder).rows] == ["one", "two", "three"]


def test_joined_files_keep_their_marks(folder: Path) -> None:
    assert len(ImageFolder.open(write(folder, GOOD, f"\ufeff{GOOD}")).rows) == 2


def test_a_caption_may_hold_what_separates_lines_elsewhere(folder: Path) -> None:
    text = "one\u2028two\x85three\u00a0four"
    write(folder, json.dumps({"file_name": "a.png", "text": text}, ensure_ascii=False))
    assert ImageFolder.open(folder).rows[0].text == text


def test_bytes_that_are_no_text_are_named_with_their_line(folder: Path) -> None:
    (folder / "metadata.jsonl").write_bytes(f"{GOOD}\n".encode() + GOOD.replace("cat", "caf\xe9").encode("latin-1"))
    with pytest.raises(LdmrtError, match="line 2: not UTF-8; found byte 0xe9"):
        ImageFolder.open(folder)
    (folder / "metadata.jsonl").write_text(GOOD, encoding="utf-16")
    with pytest.raises(LdmrtError, match="line 1: not UTF-8"):
        ImageFolder.open(folder)


def test_all_wrong_lines_are_listed_and_many_are_counted(folder: Path) -> None:
    with pytest.raises(LdmrtError) as caught:
        ImageFolder.open(write(folder, "{", GOOD, "null", '{"file_name": "b.png", "text": "b"}'))
    first, *lines = str(caught.value).splitlines()
    assert first == f"data: 3 lines of {folder / 'metadata.jsonl'} cannot be used"
    assert [line.split(":")[0] for line in lines] == ["  line 1", "  line 3", "  line 4"]

    with pytest.raises(LdmrtError) as caught:
        ImageFolder.open(write(folder, *["null"] * 37))
    lines = str(caught.value).splitlines()[1:]
    assert (len(lines), lines[-2][:9], lines[-1]) == (LISTED + 1, "  line 20", "  and 17 more")


def test_rows_of_files_that_cannot_be_used_are_kept_apart(folder: Path) -> None:
    """They keep their place in the order, so a file that is lost half-way does not change it."""
    rows, problems = read_metadata(
        write(folder, GOOD, '{"file_name": "b.png", "text": "b"}', "null") / "metadata.jsonl"
    )
    assert [row.file_name for row in rows] == ["a.png", "b.png"]
    assert [(problem.line, problem.file_name) for problem in problems] == [(2, "b.png"), (3, None)]


def test_the_list_of_lines_crosses_processes(tmp_path: Path) -> None:
    error = refuse(tmp_path, [Problem(1, "no caption", "a.png"), Problem(2, "no caption", "b.png")])
    assert str(pickle.loads(pickle.dumps(error))) == str(copy.deepcopy(error)) == str(error)
    assert len(str(error).splitlines()) == 3
