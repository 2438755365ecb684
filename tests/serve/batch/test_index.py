"""An index holds what is done, whatever its last line was when a process ended."""

import json
from pathlib import Path

import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.serve.batch.index import FAILED, INDEX, Entry, Index
from ldmrt.serve.batch.lines import Line, check_file, read_lines
from ldmrt.serve.batch.requests import Reader

READER = Reader(True, {"seed": 3})
TEXTS = ['{"prompt": "a"}', '{"prompt": 5}', "", '{"prompt": "b"', '{"prompt": "c"}']


def lines_of(folder: Path, texts: list[str] = TEXTS) -> tuple[Path, list[Line]]:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(texts))
    return path, list(read_lines(path, check_file(path)))


def entry_of(line: Line) -> Entry:
    """What becomes of each of `TEXTS`."""
    if line.number in (2, 4):
        return Entry(line.number, "failed", error=f"line {line.number} failed", input=line.digest)
    if line.is_blank:
        return Entry(line.number, "blank", input=line.digest)
    return Entry(line.number, "done", (f"{line.number}.png",), (line.number,), input=line.digest)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of a run that is done."""
    folder = tmp_path / "out"
    folder.mkdir()
    with Index(folder, READER) as index:
        for line in lines_of(tmp_path)[1]:
            index.append(line, entry_of(line))
    assert index.counts == {"done": 2, "failed": 2, "blank": 1, "images": 2}
    return folder


def resumed(out: Path, texts: list[str] = TEXTS) -> Index:
    path, lines = lines_of(out.parent, texts)
    index = Index(out, READER)
    index.resume(iter(lines), path)
    return index


def test_an_index_has_a_line_for_each(out: Path) -> None:
    entries = [json.loads(text) for text in (out / INDEX).read_text().splitlines()]
    assert [(entry["line"], entry["status"]) for entry in entries] == [
        *((1, "done"), (2, "failed"), (3, "blank"), (4, "failed"), (5, "done")),
    ]
    assert entries[0] | {"input": ""} == {"line": 1, "status": "done", "files": ["1.png"], "seeds": [1], "input": ""}
    assert entries[1]["error"] == "line 2 failed"
    assert [json.loads(text) for text in (out / FAILED).read_text().splitlines()] == [
        {"prompt": 5, "seed": 4, "error": "line 2 failed"},
        {"text": '{"prompt": "b"', "error": "line 4 failed"},
    ]


def test_wherever_a_write_was_torn(out: Path) -> None:
    """The index is cut after each of its bytes, and filled with zeros to its size, as some file systems do."""
    whole, failed = (out / INDEX).read_bytes(), (out / FAILED).read_bytes()
    lines = lines_of(out.parent)[1]
    for end in range(len(whole)):
        for rest in (b"", bytes(len(whole) - end)):
            (out / INDEX).write_bytes(whole[:end] + rest)
            index = resumed(out)
            assert index.last == whole[:end].count(b"\n")
            assert (out / INDEX).read_bytes() == whole[: whole.rfind(b"\n", 0, end) + 1]
        with index:
            for line in lines[index.last :]:
                index.append(line, entry_of(line))
        assert ((out / INDEX).read_bytes(), (out / FAILED).read_bytes()) == (whole, failed)
        assert index.counts == {"done": 2, "failed": 2, "blank": 1, "images": 2}


@pytest.mark.parametrize("content", [b"", b"torn", None])
def test_failed_lines_are_written_anew(out: Path, content: bytes | None) -> None:
    """They follow from the index, whatever a killed process has left of them."""
    before = (out / FAILED).read_bytes()
    (out / FAILED).unlink() if content is None else (out / FAILED).write_bytes(before + content)
    resumed(out)
    assert (out / FAILED).read_bytes() == before


def test_nothing_has_failed(tmp_path: Path) -> None:
    (tmp_path / FAILED).write_text("of a line that is not in the index")
    resumed_in = tmp_path / "prompts"
    resumed_in.mkdir()
    path, lines = lines_of(resumed_in)
    Index(tmp_path, READER).resume(iter(lines), path)
    assert not (tmp_path / FAILED).exists()


def test_a_file_with_more_lines_goes_on(out: Path) -> None:
    assert resumed(out, [*TEXTS, '{"prompt": "d"}']).last == len(TEXTS)


@pytest.mark.parametrize("number", range(5))
def test_a_file_with_another_line(out: Path, number: int) -> None:
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    texts = [*TEXTS[:number], TEXTS[number] + " ", *TEXTS[number + 1 :]]
    with pytest.raises(LdmrtError, match=f"line {number + 1} of .*prompts.jsonl is not that of the run in"):
        resumed(out, texts)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_file_with_fewer_lines(out: Path) -> None:
    with pytest.raises(LdmrtError, match=r"has fewer lines than .*out"):
        resumed(out, TEXTS[:3])


def test_an_index_that_is_damaged_inside(out: Path) -> None:
    """Nothing of it is cut off: its images are there."""
    whole = (out / INDEX).read_bytes()
    first, rest = whole.split(b"\n", 1)
    for content in (b"\0" * len(first) + b"\n" + rest, rest, first + b"\n" + first + b"\n" + rest):
        (out / INDEX).write_bytes(content)
        with pytest.raises(LdmrtError, match=r"line [12] of .*index.jsonl is damaged"):
            resumed(out)
        assert (out / INDEX).read_bytes() == content
