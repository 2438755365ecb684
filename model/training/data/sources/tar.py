"""Read where the members of a tar archive are, so that each can be read alone.

The archives are those of POSIX.1-1988 (ustar), with the extensions of POSIX.1-2001 (pax) and GNU tar for long names and
large sizes.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path

from ldmrt.runtime.errors import LdmrtError, first_line

BLOCK = 512  # bytes
FILES, FOLDER = (b"0", b"\0", b"7"), b"5"
SPARSE, LONG_NAME, LONG_LINK, PAX, PAX_OF_ALL = b"S", b"L", b"K", b"x", b"g"
LARGEST = 1 << 20  # bytes of a name, or of a member's extended header
KINDS = {
    b"1": "a link", b"2": "a link", b"3": "a device", b"4": "a device", b"6": "a FIFO", SPARSE: "a sparse file",
}  # fmt: skip
GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Member:
    """States where the bytes of a member are in its archive, or what it is where it is no plain file."""

    name: str
    offset: int
    size: int
    kind: str | None = None


def members(path: Path) -> Iterator[Member]:
    """Yield the members of an archive in their order; folders are left out.

    Raises:
        LdmrtError: The file is no tar archive, is damaged or truncated, or cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            yield from _Archive(path, file).members()
    except OSError as error:
        raise LdmrtError("data", f"cannot read {path}", found=first_line(error)) from None


def read_member(path: Path, member: Member) -> bytes:
    """Read the bytes of a member; an `LdmrtError` where the archive has become shorter or cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(member.offset)
            content = file.read(member.size)
    except OSError as error:
        raise LdmrtError("data", f"cannot read {path}", found=first_line(error)) from None
    if len(content) < member.size:
        raise _truncated(path, member.name)
    return content


class _Archive:
    """Reads headers from an open archive."""

    def __init__(self, path: Path, file: RawIOBase) -> None:
        self.path, self.file = path, file
        self.size = file.seek(0, os.SEEK_END)

    def members(self) -> Iterator[Member]:
        """Yield the members up to the end of the archive, two blocks of zeros."""
        place, name = 0, "the first member"
        long_name, fields, of_all = "", dict[str, str](), dict[str, str]()
        while any(header := self._header(place, name)):
            kind, size = header[156:157], self._number(header[124:136], name)
            place, name = place + BLOCK, long_name or _named(fields) or _named(of_all) or _name(header)
            if kind not in (SPARSE, LONG_NAME, LONG_LINK, PAX, PAX_OF_ALL):
                size = self._decimal(fields.get("size", of_all.get("size")), name, size)
                size = 0 if kind in b"123456" else size
            if place + size > self.size:
                raise _truncated(self.path, name)
            if kind in (LONG_NAME, PAX, PAX_OF_ALL):
                content = self._extended(place, size, name)
                if kind == LONG_NAME:
                    long_name = _text(content)
                elif kind == PAX:
                    fields = self._fields(content, name)
                else:
                    of_all |= self._fields(content, name)
            elif kind != LONG_LINK:
                place += self._map_of_sparse(header, place) if kind == SPARSE else 0
                if kind != FOLDER and not (kind == b"\0" and name.endswith("/")):
                    sparse = any(key.startswith("GNU.sparse") for key in fields)
                    what = "a sparse file" if sparse else None if kind in FILES else KINDS.get(kind, "no plain file")
                    yield Member(name, place, size, what)
                long_name, fields = "", {}
            place += -(-size // BLOCK) * BLOCK
        self._check_end(place)

    def _read(self, place: int, size: int) -> bytes:
        self.file.seek(place)
        return self.file.read(size) or b""

    def _header(self, place: int, name: str) -> bytes:
        """Read the header at a place; `name` is of the member before it."""
        header = self._read(place, BLOCK)
        if place == 0 and header.startswith(GZIP):
            raise compressed(self.path)
        if len(header) < BLOCK:
            raise _truncated(self.path, name)
        if any(header) and not _fits(header):
            after = f"after {name}" if place else "at its beginning"
            raise LdmrtError("data", f"{self.path} is no tar archive", found=f"no header {after}")
        return header

    def _map_of_sparse(self, header: bytes, place: int) -> int:
        """Return the bytes between the header of a sparse file and its content."""
        more, begin = header[482], place
        while more and place < self.size:
            more = self._read(place + 504, 1)[:1] not in (b"", b"\0")
            place += BLOCK
        return place - begin

    def _number(self, digits: bytes, name: str) -> int:
        """Read a number of a header: in octal digits, or GNU's 256 values a byte."""
        if digits[0] & 0x80:
            return int.from_bytes(bytes([digits[0] & 0x7F]) + digits[1:], "big")
        text = digits.split(b"\0")[0].strip()
        try:
            return int(text or b"0", 8)
        except ValueError:
            raise self._damaged(name) from None

    def _decimal(self, text: str | None, name: str, otherwise: int) -> int:
        """Read the size of an extended header; `otherwise` where there is none."""
        if text is None:
            return otherwise
        if not text.isdecimal():
            raise self._damaged(name)
        return int(text)

    def _extended(self, place: int, size: int, name: str) -> bytes:
        """Read a long name or an extended header."""
        if size > LARGEST:
            raise self._damaged(name)
        return self._read(place, size)

    def _fields(self, content: bytes, name: str) -> dict[str, str]:
        """Read the records of an extended header, LENGTH KEY=VALUE and a newline each."""
        found = dict[str, str]()
        while content:
            digits = content.split(b" ")[0]
            length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
            key, equals, value = content[len(digits) + 1 : max(0, length - 1)].partition(b"=")
            if not equals or content[length - 1 : length] != b"\n":
                raise self._damaged(name)
            found[_text(key)] = _text(value)
            content = content[length:]
        return found

    def _check_end(self, place: int) -> None:
        """Refuse an archive that goes on after its end, as one does that another was appended to."""
        while place < self.size:
            content = self._read(place, 1 << 20)
            if any(content):
                problem, found = f"{self.path} goes on after its end", "archives joined to one"
                raise LdmrtError("data", problem, expected="one archive a file", found=found)
            place += len(content)

    def _damaged(self, name: str) -> LdmrtError:
        return LdmrtError("data", f"{self.path} is damaged", found=f"an invalid header at {name}")


def compressed(path: Path) -> LdmrtError:
    """Return the error that refuses a compressed archive."""
    problem = f"{path} is compressed: an image in it cannot be read without all before it"
    return LdmrtError("data", problem, expected="a .tar file", hint="decompress it")


def _fits(header: bytes) -> bool:
    """Tell whether a header has the sum of its bytes, for which the sum itself counts as eight spaces.

    Old programs added bytes with a sign.
    """
    stored = header[148:156].split(b"\0")[0].strip().lstrip(b"0")
    counted = header[:148] + header[156:]
    total = 256 + sum(counted)
    return stored == b"%o" % total or stored == b"%o" % (total - 256 * sum(byte > 127 for byte in counted))


def _truncated(path: Path, name: str) -> LdmrtError:
    return LdmrtError("data", f"{path} is truncated", found=f"an end at {name}")


def _name(header: bytes) -> str:
    """Return the name in a header, after its prefix in ustar."""
    name, prefix = (_text(header[begin:end].split(b"\0")[0]) for begin, end in ((0, 100), (345, 500)))
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _named(fields: Mapping[str, str]) -> str | None:
    """Return the name in an extended header."""
    return fields.get("GNU.sparse.name") or fields.get("path")


def _text(content: bytes) -> str:
    return content.rstrip(b"\0").decode(errors="surrogateescape")
