"""Lines of a file are read one by one, and files that hold none are refused before anything is done."""

import gzip
import os
from pathlib import Path

import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.serve.batch.lines import LINE_BYTES, check_file, is_json, read_lines


def written(folder: Path, content: bytes, name: str = "prompts.txt") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"a\r\n\r\nb\r\n", ["a", "", "b"]),
        (b"\xef\xbb\xbfa\n", ["a"]),  # as Windows' editors begin a file
        ("ü 猫\n \nb".encode(), ["ü 猫", " ", "b"]),
        ("a\u2028b\x0cc\nd".encode(), ["a\u2028b\x0cc", "d"]),  # which str.splitlines takes for ends of lines
    ],
)
def test_lines(tmp_path: Path, content: bytes, texts: list[str]) -> None:
    path = written(tmp_path, content)
    assert check_file(path) == len(texts)
    lines = list(read_lines(path, len(texts)))
    assert [(line.number, line.text) for line in lines] == list(enumerate(texts, 1))
    assert [line.is_blank for line in lines] == [not text.strip() for text in texts]


def test_a_digest_is_of_all_lines_so_far(tmp_path: Path) -> None:
    """How lines end does not count, where they end does."""

    def digests(content: bytes) -> list[str]:
        path = written(tmp_path, content)
        return [line.digest for line in read_lines(path, check_file(path))]

    first = digests(b"a\nb\nc")
    assert digests(b"a\r\nb\r\nc\r\n") == first
    assert digests(b"a\nb\nc\nd")[:3] == first
    assert digests(b"a\nx\nc")[0] == first[0]
    assert not set(digests(b"a\nx\nc")[1:]) & set(first)
    assert digests(b"ab\n\nc")[1] != first[1]
    assert digests(b"1:a\n")[0] != digests(b"a\n")[0]


def test_a_file_that_grows_meanwhile_is_read_as_far_as_it_was(tmp_path: Path) -> None:
    path = written(tmp_path, b"a\nb\n")
    count = check_file(path)
    path.write_bytes(b"a\nb\nc\n")
    assert [line.text for line in read_lines(path, count)] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "has no prompts; expected a prompt or a JSON object in each line"),
        ("a.jsonl", b"\n \r\n", "has no prompts"),
        ("a.txt", b"a\nb\xff\n", "cannot read .*; expected UTF-8; found the byte 0xff in line 2"),
        ("a.txt", "a".encode("utf-16"), "found the byte 0xff in line 1"),
        ("a.jsonl.gz", gzip.compress(b"{}", mtime=0), r"is compressed; expected plain text\n  try: gunzip"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "is compressed"),
        ("a.csv", b"a\n", r"is of no known kind; expected a name that ends in .jsonl \(JSON objects\) or .txt"),
        ("a.txt", b"a\n" + b"x" * (LINE_BYTES + 1), f"line 2 of .* is too long; expected at most {LINE_BYTES} bytes"),
    ],
)
def test_what_is_no_file_of_prompts(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(LdmrtError, match=message):
        check_file(written(tmp_path, content, name))


def test_a_line_of_the_largest_size(tmp_path: Path) -> None:
    assert check_file(written(tmp_path, b"x" * (LINE_BYTES - 1) + b"\ny")) == 2


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for path, message in (
        (tmp_path / "nowhere.txt", "missing file"),
        (tmp_path, "expected a regular file; found a folder"),
        (tmp_path / "pipe.txt", "found a FIFO"),
    ):
        with pytest.raises(LdmrtError, match=message):
            check_file(path)


def test_kinds() -> None:
    names = ("a.jsonl", "a.JSONL", "a.ndjson", "a.txt")
    assert [is_json(Path(name)) for name in names] == [True, True, True, False]
