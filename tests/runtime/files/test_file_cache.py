"""Files that were compared before are not read again, and what has changed always is."""

import json
import os
import shutil
from pathlib import Path

import pytest

from ldmrt.runtime import Bundle, LdmrtError
from ldmrt.runtime.bundle.manifest import MANIFEST
from ldmrt.runtime.files import file_cache
from ldmrt.runtime.files.reading import cache_folder

WEIGHTS = "unet/model.onnx_data"


@pytest.fixture
def copy(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_cache, "SETTLED", -1e18)  # nobody waits two seconds here
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were hashed."""
    names: list[str] = []
    hashed = file_cache.sha256
    monkeypatch.setattr(file_cache, "sha256", lambda path: (names.append(path.name), hashed(path))[1])
    return names


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_second_opening_reads_nothing(copy: Path, read: list[str], tmp_path: Path) -> None:
    opened = Bundle.open(copy, stamped=True)
    assert len(read) == len(opened.manifest["files"])
    read.clear()
    Bundle.open(copy, stamped=True)
    assert read == []
    folders = {name.partition("/")[0] for name in opened.manifest["files"]}
    assert {path.name for path in copy.iterdir()} == {*folders, MANIFEST}  # nothing is added to the bundle
    again = Path(shutil.copytree(copy, tmp_path / "again"))  # times are kept, but these are other files
    Bundle.open(again, stamped=True)
    assert len(read) == len(opened.manifest["files"])


def test_change_of_the_same_size_is_caught(copy: Path, read: list[str]) -> None:
    Bundle.open(copy, stamped=True)
    read.clear()
    flip(copy / WEIGHTS)
    for _ in range(2):  # and is not forgotten
        with pytest.raises(LdmrtError, match=f"{WEIGHTS} was changed"):
            Bundle.open(copy, stamped=True)
    assert set(read) == {"model.onnx_data"}


def test_a_forged_time_is_caught(copy: Path) -> None:
    """By the time of change, which no program sets."""
    Bundle.open(copy, stamped=True)
    before = (copy / WEIGHTS).stat()
    flip(copy / WEIGHTS)
    os.utime(copy / WEIGHTS, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (copy / WEIGHTS).stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(LdmrtError, match=f"{WEIGHTS} was changed"):
        Bundle.open(copy, stamped=True)


def test_another_manifest_is_compared(copy: Path) -> None:
    Bundle.open(copy, stamped=True)
    name = copy / MANIFEST
    digest = Bundle.open(copy, check=False).manifest["files"][WEIGHTS]["sha256"]
    name.write_text(name.read_text().replace(digest, "0" * 64))
    with pytest.raises(LdmrtError, match=f"{WEIGHTS} was changed"):
        Bundle.open(copy, stamped=True)


def test_young_files_are_not_trusted(copy: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_cache, "SETTLED", 1e18)
    for _ in range(2):
        read.clear()
        opened = Bundle.open(copy, stamped=True)
        assert len(read) == len(opened.manifest["files"])


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"unet/model.onnx_data": 3}', b"\xff"])
def test_damaged_cache(copy: Path, tmp_path: Path, content: bytes) -> None:
    Bundle.open(copy, stamped=True)
    (file,) = (tmp_path / "cache" / "ldmrt" / "checked").iterdir()
    file.write_bytes(content)
    flip(copy / WEIGHTS)
    with pytest.raises(LdmrtError, match=f"{WEIGHTS} was changed"):
        Bundle.open(copy, stamped=True)


def test_no_place_for_a_cache(copy: Path, read: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")  # no folder can be made there
    for _ in range(2):
        read.clear()
        opened = Bundle.open(copy, stamped=True)
        assert len(read) == len(opened.manifest["files"])


def test_whoever_asks_for_everything_gets_it(copy: Path, read: list[str]) -> None:
    """`ldmrt verify` and `inspect` do: their files are read by another hand."""
    Bundle.open(copy, stamped=True)
    read.clear()
    Bundle.open(copy, stamped=True)
    assert read == []
    (file,) = Path(os.environ["XDG_CACHE_HOME"]).rglob("*.json")
    known = json.loads(file.read_text())
    flip(copy / WEIGHTS)
    there = (copy / WEIGHTS).stat()
    state = [there.st_size, there.st_ino, there.st_mtime_ns, there.st_ctime_ns]
    file.write_text(json.dumps({**known, WEIGHTS: [*state, known[WEIGHTS][-1]]}))  # as a clock turned back leaves it
    Bundle.open(copy, stamped=True)
    with pytest.raises(LdmrtError, match=f"{WEIGHTS} was changed"):
        Bundle.open(copy)


def no_user(number: int) -> None:
    raise KeyError(f"getpwuid(): uid not found: {number}")


@pytest.mark.parametrize("home", [None, "", "relative", "/proc/self/nowhere"])
@pytest.mark.parametrize("cache", [None, "", "relative", "/dev/null/cache"])
def test_without_a_home_it_runs_without_a_cache(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None, cache: str | None
) -> None:
    """As in a container whose user has no entry in passwd; and nothing is left in the folder that it runs in."""
    import pwd

    monkeypatch.setattr(pwd, "getpwuid", no_user)
    for name, value in (("HOME", home), ("XDG_CACHE_HOME", cache)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert cache_folder() is None or home == "/proc/self/nowhere" or cache == "/dev/null/cache"
    Bundle.open(copy, stamped=True)
    assert list(Path().iterdir()) == []


def test_a_cache_that_cannot_be_written_is_none(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"in the way")
    Bundle.open(copy, stamped=True)
    assert (tmp_path / "cache").read_bytes() == b"in the way"
