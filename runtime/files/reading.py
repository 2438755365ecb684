"""Files read with care: regular ones alone, of a size and depth that is bounded."""

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldmrt.runtime.errors import LdmrtError, first_line

JsonObject = dict[str, Any]  # an object of a JSON file, values of any kind JSON has
JSON_BYTES = 64 << 20  # the index of a very large model has some megabytes
JSON_DEPTH = 64  # a config nests lists and objects a few levels deep
DEEP = f"more than {JSON_DEPTH} nested levels"
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def sha256(path: Path) -> str:
    """Compute the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def plain_file(where: str, path: Path) -> Path:
    """Return `path` if it is a regular file: reading a FIFO or a device may never end.

    Raises:
        LdmrtError: The file is missing, or a folder, a FIFO, a socket or a device.
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


def find_file(component: str, path: Path, names: Sequence[str]) -> Path:
    """Return the file at `path`; in a folder the first of `names`, or the one safetensors file that it holds."""
    if not path.is_dir():
        return plain_file(component, path)
    if usual := next((path / name for name in names if (path / name).is_file()), None):
        return usual
    files = sorted(file for file in path.glob("*.safetensors") if file.is_file())
    if len(files) != 1:
        inside = ", ".join(file.name for file in files[:3]) or "none"
        raise LdmrtError(component, f"no file to read in {path}", expected=" or ".join(names), found=inside)
    return files[0]


def read_bytes(where: str, path: Path, limit: int = JSON_BYTES) -> bytes:
    """Read a regular file of at most `limit` bytes; raise an `LdmrtError` about `where` for any other."""
    try:
        if (size := plain_file(where, path).stat().st_size) > limit:
            raise LdmrtError(where, f"{path} is too large", expected=f"at most {limit} bytes", found=f"{size} bytes")
        return path.read_bytes()
    except OSError as error:
        raise LdmrtError(where, f"cannot read {path}", found=first_line(error)) from None


def read_json(where: str, path: Path) -> JsonObject:
    """Read the JSON object in a regular file; raise an `LdmrtError` about `where` for any other."""
    return parse_json(where, str(path), read_bytes(where, path))


def parse_json(where: str, name: str, content: str | bytes) -> JsonObject:
    """Parse a JSON object that nests at most `JSON_DEPTH` levels.

    Raises:
        LdmrtError: The content is anything else; the error is about `where` and calls the content `name`.
    """
    problem, expected = f"cannot read {name}", "a JSON object"
    try:
        value = decode_json(content)
    except (ValueError, TypeError) as error:
        raise LdmrtError(where, problem, expected=expected, found=first_line(error)) from None
    if not isinstance(value, dict):
        raise LdmrtError(where, problem, expected=expected, found=type(value).__name__)
    return value


def decode_json(content: str | bytes) -> Any:
    """Decode any JSON value that nests at most `JSON_DEPTH` levels.

    Raises:
        ValueError: The JSON or its UTF-8 is invalid, an integer has thousands of digits, or values nest deeper.
    """
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(DEEP) from None
    if too_deep(value):
        raise ValueError(DEEP)
    return value


def too_deep(value: object) -> bool:
    """Tell whether lists and dicts nest deeper than `JSON_DEPTH`: Python prints and copies them by recursion."""
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


def cache_folder() -> Path | None:
    """Return the user's folder for files that can be made again; None where there is none, as in many containers."""
    if os.path.isabs(cache := os.environ.get("XDG_CACHE_HOME", "")):
        return Path(cache) / "ldmrt"
    if os.environ.get("HOME") == "":
        return None  # expanded, "~" would be the root
    home = os.path.expanduser("~")  # HOME, or else what the system knows of the user, or else "~"
    return Path(home) / ".cache" / "ldmrt" if os.path.isabs(home) else None
