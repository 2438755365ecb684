"""JSON and other files are read with care: nothing but regular files, of a size and depth that is bounded."""

import json
import os
import socket
from pathlib import Path

import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.files import reading


def test_reads_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1, 2.5, null, "ä"], "b": -Infinity}', encoding="utf-8")
    assert reading.read_json("unet", tmp_path / "a.json") == {"a": [1, 2.5, None, "ä"], "b": float("-inf")}


DAMAGED = {
    "cut off": ('{"a": 1', "expected a JSON object; found Expecting"),
    "a list": ("[1]", "expected a JSON object; found list"),
    "empty": ("", "expected a JSON object; found Expecting value"),
    "a very long number": ('{"a": ' + "9" * 5000 + "}", "found Exceeds the limit"),
    "deeper than Python recurses": ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "found more than 64 nested levels"),
    "deep": ('{"a":' * 65 + "1" + "}" * 65, "found more than 64 nested levels"),
    "deep lists": ('{"a": ' + "[" * 70 + "]" * 70 + "}", "found more than 64 nested levels"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged(name: str, tmp_path: Path) -> None:
    content, message = DAMAGED[name]
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(LdmrtError, match=f"unet: cannot read .*{message}"):
        reading.read_json("unet", tmp_path / "a.json")


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff\xfe"}')
    with pytest.raises(LdmrtError, match=r"cannot read .*utf-8"):
        reading.read_json("unet", tmp_path / "a.json")


def test_nested_as_deep_as_is_read(tmp_path: Path) -> None:
    content = '{"a":' * 63 + "1" + "}" * 63
    (tmp_path / "a.json").write_text(content)
    assert reading.read_json("unet", tmp_path / "a.json") == json.loads(content)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
@pytest.mark.parametrize("kind", ["FIFO", "folder", "device", "socket", "missing"])
def test_not_a_regular_file(kind: str, tmp_path: Path) -> None:
    """Nothing waits for a FIFO's writer, and nothing is read from a device."""
    path = tmp_path / "a.json"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))
    message = "missing file; expected" if kind == "missing" else f"expected a regular file; found a {kind}"
    with pytest.raises(LdmrtError, match=message):
        reading.read_json("unet", path)


def test_a_nul_in_the_name(tmp_path: Path) -> None:
    with pytest.raises(LdmrtError, match=r"cannot read .*null"):
        reading.read_json("unet", tmp_path / "a\0.json")


def test_too_large(tmp_path: Path) -> None:
    """A file that declares gigabytes is refused before it is read."""
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(8 << 30)
    with pytest.raises(LdmrtError, match="is too large; expected at most 67108864 bytes; found 8589934592 bytes"):
        reading.read_json("unet", tmp_path / "a.json")
