"""Files that are whole or not there, written to a temporary name and renamed; and files read with care."""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

from .errors import LdmrtError, first_line
from .owners import Owner

JSON_BYTES = 64 << 20  # the index of a very large model has some megabytes
JSON_DEPTH = 64  # a config nests lists and objects a few levels deep
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
TEMPORARY = re.compile(r"\..*\.ldmrt-([0-9a-f]{8}-[0-9]+-[0-9]+)-[0-9a-f]{8}\.tmp", re.DOTALL)
IDLE = 86400  # seconds without a write: nobody on another host is still at it
LONGEST = 100  # bytes of a name that its temporary name repeats


def temporary_name(name: str, suffix: str = ".tmp") -> str:
    """Make a hidden name for what shall become `name`; it says which process is at it."""
    return f"{temporary_prefix(name)}{Owner.current()}-{secrets.token_hex(4)}{suffix}"


def temporary_prefix(name: str) -> str:
    """Return what the temporary names of `name` begin with."""
    content = os.fsencode(name)
    if len(content) > LONGEST:
        digest = hashlib.sha256(content).hexdigest()[:8]
        name = f"{content[:LONGEST].decode('utf-8', 'ignore')}-{digest}"
    return f".{name}.ldmrt-"


def is_abandoned(path: Path, owner: Owner | None) -> bool:
    """Whether the process that made a temporary file or folder is gone. Of another host's process nothing is known:
    it is taken to be gone when nothing was written for a day.
    """
    if owner is not None and owner.is_here:
        return owner.is_dead
    written = [0.0]
    for one in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):
            written.append(one.lstat().st_mtime)
    return time.time() - max(written) > IDLE


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files and folders in `folder` whose process is gone, as a killed one leaves them."""
    try:
        names = [name for name in os.listdir(folder) if TEMPORARY.fullmatch(name)]
    except OSError:
        return
    for name in names:
        found, path = TEMPORARY.fullmatch(name), folder / name
        if found and is_abandoned(path, Owner.parse(found[1])):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder as far as that is possible; of a link, the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@cache
def _remove_abandoned_once(folder: Path) -> None:
    remove_abandoned(folder)


@contextlib.contextmanager
def temporary_folder(place: Path) -> Iterator[Path]:
    """A private folder beside `place` that is gone when the block ends, if it is still there."""
    remove_abandoned(place.parent)
    work = place.parent / temporary_name(place.name)
    work.mkdir(mode=0o700)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give errors of the system that name no file, such as a full disk's, this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends well, and leaves no trace when it does not. What
    is no regular file, such as /dev/stdout or a pipe, is written to as it is.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb") as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned_once(path.parent)
    work = path.parent / temporary_name(path.name)
    handle = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(work, 0o644)
        os.replace(work, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(work)
        raise


def cache_folder() -> Path | None:
    """The user's folder for what can be made again; None where the user has none, as in many containers."""
    if os.path.isabs(named := os.environ.get("XDG_CACHE_HOME", "")):
        return Path(named) / "ldmrt"
    if os.environ.get("HOME") == "":
        return None  # expanded, "~" would be the root
    home = os.path.expanduser("~")  # HOME, or else what the system knows of the user, or else "~"
    return Path(home) / ".cache" / "ldmrt" if os.path.isabs(home) else None


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def plain_file(where: str, path: Path) -> Path:
    """Return `path` if it is a regular file; refuse a missing one, a folder, a FIFO, a socket and a device.

    Reading a FIFO or a device may never end.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise LdmrtError(where, "missing file", expected=path) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise LdmrtError(where, f"cannot read {str(path)!r}", found=first_line(error)) from None
    if not stat.S_ISREG(mode):
        found = KINDS.get(stat.S_IFMT(mode), "something else")
        raise LdmrtError(where, f"cannot read {path}", expected="a regular file", found=found)
    return path


def read_bytes(where: str, path: Path, limit: int = JSON_BYTES) -> bytes:
    """Read a regular file of at most `limit` bytes."""
    try:
        if (size := plain_file(where, path).stat().st_size) > limit:
            raise LdmrtError(where, f"{path} is too large", expected=f"at most {limit} bytes", found=f"{size} bytes")
        return path.read_bytes()
    except OSError as error:
        raise LdmrtError(where, f"cannot read {path}", found=first_line(error)) from None


def read_json(where: str, path: Path) -> dict[str, Any]:
    """Read the JSON object in a regular file."""
    return parse_json(where, str(path), read_bytes(where, path))


def parse_json(where: str, name: str, content: str | bytes) -> dict[str, Any]:
    """Parse a JSON object that nests at most `JSON_DEPTH` levels; errors call it `name`."""
    problem, expected = f"cannot read {name}", "a JSON object"
    try:
        value = json.loads(content)
    except RecursionError:
        raise LdmrtError(where, problem, expected=f"at most {JSON_DEPTH} nested levels") from None
    except (ValueError, TypeError) as error:  # of JSON, of UTF-8, of an integer of thousands of digits
        raise LdmrtError(where, problem, expected=expected, found=first_line(error)) from None
    if not isinstance(value, dict):
        raise LdmrtError(where, problem, expected=expected, found=type(value).__name__)
    if too_deep(value):
        raise LdmrtError(where, problem, expected=f"at most {JSON_DEPTH} nested levels")
    return value


def too_deep(value: Any) -> bool:
    """Whether lists and dicts nest deeper than `JSON_DEPTH`: Python prints and copies them by recursion."""
    level = [value]
    for _ in range(JSON_DEPTH):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
        ]
        if not level:
            return False
    return True
