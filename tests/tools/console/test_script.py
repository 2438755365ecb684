"""What ends a command, and what it leaves: signals, closed pipes, narrow encodings, full disks, missing memory."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.files.writing import write_atomically
from ldmrt.tools.console.script import BUG, run_script

PROGRAM = "import sys; from ldmrt.tools.cli import main; sys.argv[0] = 'ldmrt'; main()"


def ended(action: Callable[[], Any]) -> object:
    """How a command of this body ends."""
    with pytest.raises(SystemExit) as left:
        run_script(click.Command("draw", callback=action, params=[]))
    return left.value.code


@pytest.fixture(autouse=True)
def no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["draw"])


def fail(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (LdmrtError("unet", "no"), 2, "error: unet: no\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 2, "error: [Errno 2] No such file: 'x'\n"),
        (MemoryError(), 2, "error: draw: not enough memory\n  try: a smaller input"),
        (RecursionError("maximum recursion depth exceeded"), 2, "error: draw: recursion too deep; found maximum"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory"), 2, "error: draw: not enough memory"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), 2, "error: draw: not enough memory"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (click.UsageError("x" * 10**6), 2, ""),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, "error: draw: PyTorch is"),
        (ModuleNotFoundError("No module named 'ldmrt.gone'", name="ldmrt.gone"), BUG, "Traceback"),
        (KeyError("ours"), BUG, "Traceback"),
        (SystemExit(1), 1, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_end_has_its_code(error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(fail(error)) == code
    err = capsys.readouterr().err
    assert said in err
    assert len(err) < 10_000
    assert ("Traceback" in err) == (code == BUG)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.usefixtures("default_signals")
def test_an_interrupt_that_a_library_turned_into_an_error(
    name: str, hidden: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted:
        def __set_name__(self, owner: type, name: str) -> None:
            signal.raise_signal(getattr(signal, word))

    word = name

    def action() -> None:
        try:
            type("Owner", (), {"field": Interrupted()})  # a RuntimeError in Python 3.11
        except RuntimeError as error:
            raise (LdmrtError("text_encoder", "invalid config", found=str(error)) if hidden else error) from None

    assert ended(action) == 128 + getattr(signal, word)
    assert capsys.readouterr().err == "stopped\n"


def test_a_full_disk_after_an_interrupt_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def action() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise OSError(errno.ENOSPC, "No space left on device", "state")

    assert ended(action) == 2
    assert "no space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
@pytest.mark.usefixtures("default_signals")
def test_signals_end_a_command_as_ctrl_c_does(name: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    seen = []

    def action() -> None:
        with tempfile.TemporaryDirectory() as folder:
            seen.append(folder)
            signal.raise_signal(getattr(signal, name))

    assert ended(action) == code
    assert not os.path.exists(seen[0])
    assert capsys.readouterr().err.split() == ["stopped"]
    assert {one: signal.getsignal(one) for one in before} == before


@pytest.mark.usefixtures("default_signals")
def test_a_second_signal_does_not_disturb_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    def action() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)

    assert ended(action) == 143
    assert cleaned


def test_a_full_disk_names_the_component(
    ldmrt: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldmrt.export import bundle_writer as bundle

    def full(component: Any, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundle, "to_onnx", full)
    error = ldmrt("export", checkpoint, tmp_path / "bundle").error
    assert error == f"error: {tmp_path}/bundle/text_encoder: cannot be written; found no space left on device"
    assert list(tmp_path.iterdir()) == []


def test_sigterm_leaves_nothing_of_an_export(
    ldmrt: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldmrt.export import bundle_writer as bundle

    def half(component: Any, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"half")
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(bundle, "to_onnx", half)
    assert ldmrt("export", checkpoint, tmp_path / "bundle").code == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [0, 100])
def test_a_full_disk_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], limit: int
) -> None:
    """A file that may not grow fails as one on a full disk does."""

    def action() -> None:
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/draw", "a cat"])
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with write_atomically(tmp_path / "unet" / "model.onnx") as file:
                file.write(b"x" * 10**6)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert ended(action) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 2, said
    first, second = said.splitlines()
    assert first == f"error: {tmp_path}/unet/model.onnx: cannot be written; found file too large"
    assert second == "  try: free some space there, then run again: draw 'a cat'"
    assert list((tmp_path / "unet").iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "unet/model.onnx_data"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
    ],
)
def test_a_full_disk_in_anybodys_words(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def action() -> None:
        try:
            raise error
        finally:
            raise RuntimeError("unexpected pos 704 vs 598")  # of PyTorch, which cannot close its archive then

    for one in (action, fail(error)):
        assert ended(one) == 2
        first, second = capsys.readouterr().err.splitlines()
        assert first.startswith("error: unet/model.onnx_data" if getattr(error, "filename", None) else "error: draw")
        assert "cannot be written; found " in first
        assert second == "  try: free some space there, then run again: draw"


def run(*words: object, stdout: Any = subprocess.PIPE, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    env = {**os.environ, **environment}
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=env, timeout=300)


@pytest.mark.parametrize("words", [["inspect", "BUNDLE"], ["samplers"], ["samplers", "--json"], ["--help"]])
def test_a_reader_who_leaves_is_no_error(bundle: Path, words: list[str]) -> None:
    reads, writes = os.pipe()
    os.close(reads)  # as `head` has, before anything is written
    try:
        ran = run(*(bundle if word == "BUNDLE" else word for word in words), stdout=writes)
    finally:
        os.close(writes)
    assert (ran.returncode, ran.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_standard_output_is_one_message() -> None:
    with open("/dev/full", "wb") as full:
        ran = run("samplers", "ddim", stdout=full)
    assert ran.returncode == 2
    assert ran.stderr.decode().splitlines() == [
        "error: standard output: cannot be written; found no space left on device",
        "  try: free some space there, then run again: ldmrt samplers ddim",
    ]


PROMPT = "un café, 紅い林檎, 🍎"
EVERYTHING = """
import sys
from ldmrt.tools.cli import main
bundle, out, prompt = sys.argv[1:]
for words in (["inspect", bundle], ["samplers"], ["samplers", "ddim"], ["plan", bundle], ["engines", "list", bundle],
              ["generate", bundle, prompt, "--steps", "2", "-o", out + "/r\\u00e9sultat.png"],
              ["generate", bundle, prompt, "--negative", prompt, "--scheduler", prompt],
              ["verify", prompt], [prompt]):
    sys.argv = ["ldmrt", *words]
    try:
        main()
    except SystemExit as left:
        assert left.code in (0, None, 2), (words, left.code)
# The progress display of a terminal, in this encoding.
import time
from rich.console import Console
from ldmrt.tools.console import progress
progress.console = Console(stderr=True, force_terminal=True)
from ldmrt.tools.console.script import run_script
import click
def shown():
    with progress.console.status(prompt):
        time.sleep(0.2)
    for _ in progress.watched(range(3), 3, lambda n: prompt):
        time.sleep(0.05)
sys.argv = ["shown"]
run_script(click.Command("shown", callback=shown))
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_narrow_encodings(bundle: Path, tmp_path: Path, encoding: str) -> None:
    command = [sys.executable, "-c", EVERYTHING, bundle, tmp_path, PROMPT]
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1", "COLUMNS": "100"}
    ran = subprocess.run([*map(str, command)], capture_output=True, env=env, timeout=300, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert b"Traceback" not in ran.stderr
    assert [path.name for path in tmp_path.glob("r*.png")] == ["résultat.png"]


def test_ascii_as_the_systems_encoding(bundle: Path, tmp_path: Path) -> None:
    """The prompt is what was typed; a bundle that ONNX Runtime cannot open there is told so."""
    narrow = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "ldmrt.tools.cli", "generate", str(folder), PROMPT, "--negative", "né"]
        env = {**os.environ, **narrow}
        return subprocess.run([*program, "--steps", "1", *words], capture_output=True, text=True, env=env, timeout=300)

    assert run(bundle, "-o", str(tmp_path / "a.png")).returncode == 0
    with Image.open(tmp_path / "a.png") as image:
        said = json.loads(image.text["ldmrt"])
    assert (said["prompt"], said["negative_prompt"]) == (PROMPT, "né")
    copy = shutil.copytree(bundle, tmp_path / "bündle")
    ran = run(Path(copy), "-o", str(tmp_path / "b.png"))
    assert ran.returncode == 2
    assert "expected a path in UTF-8\n  try: rename its folders, or set PYTHONUTF8=1" in ran.stderr
