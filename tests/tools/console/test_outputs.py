"""Places that cannot be written to are found before any work, by every command that writes."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.tools.console.outputs import Output, check_output

COMMANDS = {
    "generate -o": "generate nowhere cat -o OUT.png",
    "batch OUT": "batch nowhere nowhere.txt OUT",
    "verify --json": "verify nowhere --json OUT",
    "verify --junit": "verify nowhere --junit OUT",
    "verify --html": "verify nowhere --html OUT",
    "sweep -o": "sweep nowhere --axis steps=2,3 -o OUT",
    "sweep --json": "sweep nowhere --axis steps=2,3 --json OUT",
    "interpolate -o": "interpolate nowhere a b -o OUT.gif",
    "interpolate --save-frames": "interpolate nowhere a b --save-frames OUT",
    "bench --json": "bench nowhere --json OUT",
    "samplers --plot": "samplers --plot OUT.png",
    "export BUNDLE": "export nowhere OUT",
    "train autoencoder --out": "train autoencoder --data nowhere --out OUT",
    "train ldm --out": "train ldm --data nowhere --autoencoder nowhere --out OUT",
    "train ldm --cache-folder": "train ldm --data nowhere --autoencoder nowhere --out unwritten --cache-folder OUT",
    "export-triton REPO": "export-triton nowhere OUT",
    "data emoji OUT": "data emoji OUT",
}


def faults(folder: Path) -> dict[str, Path]:
    """Places that nothing can be written to, by what is wrong with them."""
    (folder / "file").touch()
    (folder / "dangling").symlink_to(folder / "nowhere")
    found = {
        "in a file": folder / "file" / "out",
        "deep in a file": folder / "file" / "a" / "b" / "out",
        "in a link to nothing": folder / "dangling" / "out",
        "a long name": folder / ("x" * 256),
        "a long folder": folder / ("x" * 300) / "out",
        "letters of many bytes": folder / ("ü" * 128),
        "a null": folder / "a\0b",
    }
    if os.path.exists("/proc/self"):  # root may write everywhere else
        found["a file system without files"] = Path("/proc/self/nowhere/out")
        found["its top"] = Path("/proc/out")
    return found


@pytest.mark.parametrize("folder", [True, False])
def test_every_fault_is_found_and_nothing_is_made(tmp_path: Path, folder: bool) -> None:
    for name, path in faults(tmp_path).items():
        with pytest.raises(LdmrtError) as caught:
            check_output(path, "--out", folder=folder)
        assert caught.value.problem.endswith("cannot be written"), name
        assert caught.value.found, name
    with pytest.raises(LdmrtError, match="found a f"):
        check_output(tmp_path / "file" if folder else tmp_path, "--out", folder=folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]


def test_what_is_no_plain_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(LdmrtError, match="a device or a pipe"):
            check_output(path, "--json")


@contextmanager
def without_roots_rights() -> Iterator[None]:
    """Root may write everywhere, so it becomes another user for the time of the block."""
    users = os.getresuid()
    nobody = (65534, 65534, users[2]) if users[1] == 0 else users  # the saved one lets it become root again
    os.setresuid(*nobody)
    try:
        yield
    finally:
        os.setresuid(*users)


@pytest.mark.parametrize(("mode", "may"), [(0o555, False), (0o777, True)])
def test_no_permission(mode: int, may: bool) -> None:
    with tempfile.TemporaryDirectory() as name:  # not in tmp_path, which other users cannot enter
        folder = Path(name)
        check_output(folder / "out", "--out")  # imports what it needs
        folder.chmod(mode)
        refusal = nullcontext() if may else pytest.raises(LdmrtError, match="no permission to write")
        with without_roots_rights(), refusal:
            assert check_output(folder / "out", "--out") == folder / "out"


def test_a_read_only_folder_is_seen_by_root_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as on a file system that is mounted so
    with pytest.raises(LdmrtError, match="no permission to write"):
        check_output(tmp_path / "out", "--out")


def test_what_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    for path in (tmp_path / "new", tmp_path / "old", tmp_path / "a" / "b" / "new", Path("relative"), tmp_path / "ü"):
        assert check_output(path, "--out") == path
    for path in (tmp_path, tmp_path / "a" / "b", Path("relative")):
        assert check_output(path, "--out", folder=True) == path


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_every_command_looks_first(ldmrt: Any, tmp_path: Path, words: str) -> None:
    """Before it sees that there is nothing to read."""
    (tmp_path / "file").touch()
    error = ldmrt(*(word.replace("OUT", str(tmp_path / "file" / "out")) for word in words.split())).error
    assert "cannot be written" in error


def test_no_output_was_forgotten() -> None:
    """Every option of every command that takes a path for writing is one of these."""
    from ldmrt.tools.cli import COMMANDS as NAMES
    from ldmrt.tools.cli import cli

    def leaves(command: click.Command) -> list[click.Command]:
        if not isinstance(command, click.Group):
            return [command]
        return [leaf for one in command.commands.values() for leaf in leaves(one)]

    ctx = click.Context(cli)
    every = [leaf for name in NAMES for leaf in leaves(cli.get_command(ctx, name) or cli)]
    written = {param.name for command in every for param in command.params if isinstance(param.type, Output)}
    assert written == {
        "out",
        "as_json",
        "junit",
        "html",
        "bundle",
        "sheet",
        "cache_folder",
        "repo",
        "save_frames",
        "timing_cache",
    }
    for command in every:
        for param in command.params:
            if param.name in ("out", "junit", "html") or (param.name == "as_json" and not param.is_flag):  # type: ignore[attr-defined]
                assert isinstance(param.type, Output), (command.name, param.name)
