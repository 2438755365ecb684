"""Every image of a folder, decoded before training."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmrt.model.training.data import image_check
from ldmrt.model.training.data.image_check import Verdict, check_images
from ldmrt.runtime.files import file_cache

WHOLE = {"a.png": Verdict("a.png", (70, 64)), "b.png": Verdict("b.png", (70, 31))}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images, written a while ago, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_cache, "SETTLED", -1e18)  # whatever the clock says, files here are old
    folder = tmp_path / "images"
    folder.mkdir()
    for name, side in (("a.png", 64), ("b.png", 31)):
        Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, 70, 3), np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were decoded."""
    names, read_image = list[str](), image_check.read_image
    monkeypatch.setattr(
        image_check, "read_image", lambda path, least: names.append(path.name) or read_image(path, least)
    )
    return names


def check(folder: Path, *names: str, size: int = 62) -> dict[str, Verdict]:
    return {verdict.file_name: verdict for verdict in check_images(folder, list(names), size)}


def test_whole_images_are_decoded_once(folder: Path, decoded: list[str]) -> None:
    for _ in range(2):
        assert check(folder, "a.png", "b.png", "a.png") == WHOLE
    assert sorted(decoded) == ["a.png", "b.png"]


def test_a_changed_image_is_decoded_again(folder: Path, decoded: list[str]) -> None:
    check(folder, "a.png", "b.png")
    content = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(content[:-40] + bytes(40))  # of the same size
    assert check(folder, "a.png", "b.png")["a.png"].unreadable
    assert sorted(decoded) == ["a.png", "a.png", "b.png"]
    (folder / "a.png").write_bytes(content)
    assert not check(folder, "a.png")["a.png"].unreadable


def test_a_file_that_may_still_change_is_not_remembered(
    folder: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_cache, "SETTLED", 1e18)
    check(folder, "a.png")
    check(folder, "a.png")
    assert decoded == ["a.png", "a.png"]


@pytest.mark.parametrize("cache", ["/proc/nowhere", "a file", "damaged", "no list", "no side"])
def test_a_cache_that_is_of_no_use_is_left_aside(
    cache: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cache.startswith("/"):
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
    elif cache == "a file":
        (tmp_path / "cache").write_text("")
    else:
        check(folder, "a.png")
        (path,) = tmp_path.glob("cache/ldmrt/images/*.json")
        (state, known) = (folder / "a.png").stat(), json.loads(path.read_text())
        stamp = [state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns]
        assert known == {"a.png": [*stamp, "70x64"]}
        damaged = {"damaged": "{", "no list": '{"a.png": 3}', "no side": json.dumps({"a.png": [*stamp, 64]})}
        path.write_text(damaged[cache])
    assert check(folder, "a.png") == {"a.png": WHOLE["a.png"]}


def test_no_home_is_no_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "")
    assert check(folder, "a.png") == {"a.png": WHOLE["a.png"]}


def test_what_is_wrong_is_said(folder: Path) -> None:
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no image")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:-300])
    os.mkfifo(folder / "fifo")
    found = check(folder, "empty.png", "text.png", "cut.png", "none.png", "b.png", size=63)
    assert found["empty.png"].unreadable == "empty.png is empty"
    assert "cannot identify" in str(found["text.png"].unreadable)
    assert "truncated" in str(found["cut.png"].unreadable)
    assert "No such file" in str(found["none.png"].unreadable)
    assert "31 pixels" in str(found["b.png"].small)
    assert not check(folder, "b.png", size=62)["b.png"].small  # enlarged twice
