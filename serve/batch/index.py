"""Keep the index of a run: a line for each line of the file, in its order. What stands in it is done.

A line is on the disk before the next one is begun, and after its images are. So a killed run has lost nothing that
stands in its index; the last line may be torn, and is then cut off.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject, parse_json
from ldmrt.runtime.files.writing import naming, sync, sync_folder, write_atomically

from .lines import Line
from .requests import Reader, as_line

INDEX, FAILED = "index.jsonl", "failed.jsonl"
Status = Literal["done", "failed", "blank"]


@dataclass(frozen=True)
class Entry:
    """Holds what became of a line.

    Attributes:
        line: Its number, from 1 on.
        status: "done", "failed", or "blank" for a line without a prompt.
        files: Its images, in the folder of the run.
        seeds: The seed of each image.
        error: Why it has failed.
        input: The digest of the file up to this line.
    """

    line: int
    status: Status
    files: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    error: str | None = None
    input: str = ""

    def as_json(self) -> JsonObject:
        """Return it as it stands in the index."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Index:
    """The index of a run, and the file of the lines that have failed.

    Attributes:
        last: The number of the last line that is done.
        counts: How many lines were drawn, have failed and are blank, and how many images there are.
    """

    def __init__(self, out: Path, reader: Reader) -> None:
        """Take the folder, and what makes lines of those that have failed."""
        self._out, self._reader = out, reader
        self.last, self.counts = 0, Counter[str]()

    def resume(self, lines: Iterator[Line], name: Path) -> None:
        """Read the index, cut off a torn last line, and write the file of failed lines anew.

        Args:
            lines: The lines of the file, from the first one on.
            name: The file, for messages.

        Raises:
            LdmrtError: The file is not the one that the index is of, or the index is damaged.
        """
        failed = False
        with write_atomically(self._out / FAILED) as file:
            for entry in self._read():
                line = next(lines, None)
                if line is None:
                    raise LdmrtError("batch", f"{name} has fewer lines than {self._out}", found=self.last, hint=ANOTHER)
                if line.digest != entry.get("input"):
                    problem = f"line {line.number} of {name} is not that of the run in {self._out}"
                    raise LdmrtError("batch", problem, hint=ANOTHER)
                if entry["status"] == "failed":
                    file.write(as_line(self._reader.failed(line, str(entry.get("error")))))
                    failed = True
                self._count(str(entry["status"]), len(entry["files"]))
        if not failed:
            (self._out / FAILED).unlink()

    def __enter__(self) -> "Index":
        """Open the files, to append to them."""
        self._file = (self._out / INDEX).open("ab")
        sync_folder(self._out)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        self._file.close()

    def append(self, line: Line, entry: Entry) -> None:
        """Add the next line: the one after `last`."""
        assert entry.line == line.number == self.last + 1
        if entry.status == "failed":
            with naming(self._out / FAILED), (self._out / FAILED).open("ab") as file:
                file.write(as_line(self._reader.failed(line, str(entry.error))))
                file.flush()
                sync(file.fileno())
        with naming(self._out / INDEX):
            self._file.write(as_line(entry.as_json()))
            self._file.flush()
            sync(self._file.fileno())
        self._count(entry.status, len(entry.files))

    def _count(self, status: str, images: int) -> None:
        """Note one more line."""
        self.last += 1
        self.counts[status] += 1
        self.counts["images"] += images

    def _read(self) -> Iterator[JsonObject]:
        """Yield the entries of the index, and cut off a torn last line."""
        path = self._out / INDEX
        if not path.exists():
            return
        with path.open("r+b") as file:
            size, whole = file.seek(0, os.SEEK_END), 0
            file.seek(0)
            while content := file.readline():
                entry = _parsed(content, self.last + 1)
                if entry is None:
                    if whole + len(content) < size:
                        hint = "another OUT; its images are whole"
                        raise LdmrtError("batch", f"line {self.last + 1} of {path} is damaged", hint=hint)
                    file.truncate(whole)
                    sync(file.fileno())
                    return
                whole += len(content)
                yield entry


ANOTHER = "the file as it was, or another OUT"


def _parsed(content: bytes, number: int) -> JsonObject | None:
    """Return a line of the index; None where it is torn, or is not the one of this number."""
    if not content.endswith(b"\n"):
        return None
    try:
        entry = parse_json("batch", INDEX, content)
    except LdmrtError:
        return None
    whole = entry.get("line") == number and entry.get("status") in ("done", "failed", "blank")
    return entry if whole and isinstance(entry.get("files"), list) else None
