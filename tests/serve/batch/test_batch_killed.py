"""Wherever `ldmrt batch` is killed, the next run ends with the files of a run that was never killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime.files.lock import LOCK
from ldmrt.runtime.pipeline.opening import open_pipeline

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
OPTIONS = ("--steps", "3", "--seed", "5", "--threads", "1")
LINES = ['{"prompt": "a fox"}', '{"prompt": 5}', "", '{"prompt": "a pear", "count": 2}', "{", '{"prompt": "an owl"}']
RANDOM_KILLS, MANY = 10, 300  # lines, more than are drawn until the last kill
# Loads what the command needs, and runs it once for each line of its input, [folder, place, number], in a process of
# its own. That one is killed before the given call of one of `CALLS` ("call"), or when it has written half of the
# given line of the index or of the failed ones ("torn"). It answers with how each has ended.
FORKS = """
import json, os, signal, sys
import numpy, onnxruntime, PIL.Image, rich.progress
import ldmrt.serve.batch.index as index
import ldmrt.serve.batch.run, ldmrt.tools.commands.serving.batch, ldmrt.tools.console.drawing.batch_images
import ldmrt.tools.console.progress, ldmrt.runtime.pipeline.opening
from ldmrt.tools.cli import main

CALLS = ("replace", "fsync", "unlink", "mkdir")
words, called = sys.argv[1:], 0

def reached(number):
    global called
    called += 1
    return called == number

def counted(call, number):
    def run(*arguments, **options):
        if reached(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return run

def torn(call, number):
    def run(value):
        line = call(value)
        if not reached(number):
            return line
        index.sync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
        return line[: len(line) // 2]
    return run

for asked in sys.stdin:
    out, place, number = json.loads(asked)
    child = os.fork()
    if not child:
        sys.stdout = sys.stderr
        if place == "torn":
            index.as_line = torn(index.as_line, number)
        else:
            for name in CALLS:
                setattr(os, name, counted(getattr(os, name), number))
        sys.argv = ["ldmrt", "batch", *words[:2], out, *words[2:]]
        try:
            main()
        except SystemExit as left:
            os._exit(int(left.code or 0))
        os._exit(70)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
Killed = Callable[[Path, str, int], int]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(LINES))
    return path


@pytest.fixture
def run_killed(bundle: Path, prompts: Path, tmp_path: Path) -> Iterator[Killed]:
    """Run the command in a folder until a call; returns its exit code."""
    command = [sys.executable, "-c", FORKS, str(bundle), str(prompts), *OPTIONS]
    with (
        (tmp_path / "errors").open("w") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as forks,
    ):

        def run(out: Path, place: str, number: int) -> int:
            assert forks.stdin is not None
            assert forks.stdout is not None
            forks.stdin.write(json.dumps([str(out), place, number]) + "\n")
            forks.stdin.flush()
            return int(forks.stdout.readline())

        yield run


def files_in(folder: Path) -> dict[str, bytes]:
    """All files of a run, hidden ones too, but the lock of a process that is dead."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def check_index(out: Path, right: dict[str, bytes]) -> int:
    """Check that what a killed run has left is true, and return how many whole lines its index has."""
    index = (out / "index.jsonl").read_bytes() if (out / "index.jsonl").exists() else b""
    whole = index[: index.rfind(b"\n") + 1]
    assert right["index.jsonl"].startswith(whole), "a line is lost, stands twice, or is out of its order"
    for text in whole.splitlines():
        for file in json.loads(text)["files"]:
            assert (out / file).read_bytes() == right[file]
    return whole.count(b"\n")


TORN = [("torn", number) for number in range(1, 9)]


@pytest.mark.parametrize(
    "kills",
    [
        [("call", number) for number in range(3, 60, 9)] + TORN[2:6:3],
        pytest.param([("call", number) for number in range(1, 60)] + TORN, marks=pytest.mark.slow(minutes=1)),
    ],
    ids=["some", "all"],
)
def test_killed_at_every_stage(run_killed: Killed, tmp_path: Path, kills: list[tuple[str, int]]) -> None:
    """Before each change of a file, and in the middle of each line; the next run takes no notice."""
    assert run_killed(tmp_path / "whole", "call", 0) == 1  # two lines fail
    right, lines = files_in(tmp_path / "whole"), set()
    assert len([name for name in right if name.endswith(".png")]) == 4
    ended = 0
    for place, number in kills:
        out = tmp_path / f"{place}-{number}"
        code = run_killed(out, place, number)
        assert code in (-signal.SIGKILL, 1)
        ended += code == 1
        if out.exists():
            lines.add(check_index(out, right))
        assert run_killed(out, "call", 0) == 1, (tmp_path / "errors").read_text()
        assert files_in(out) == right, (place, number)
    assert 0 < ended < len(kills) / 2, "the last kills are after the end, and the others before it"
    assert len(lines) > 2


def test_killed_again_and_again_in_one_folder(run_killed: Killed, tmp_path: Path) -> None:
    """Also where the one that goes on is killed, while it removes what the last has left."""
    assert run_killed(tmp_path / "whole", "call", 0) == 1
    right, out, before = files_in(tmp_path / "whole"), tmp_path / "out", 0
    for number in range(4, 60, 5):
        if run_killed(out, "call", number) == 1:
            break
        now = check_index(out, right)
        assert now >= before
        before = now
    assert number < 59
    assert files_in(out) == right


@pytest.mark.slow(minutes=2)
def test_ten_random_kills_of_the_command(bundle: Path, tmp_path: Path) -> None:
    """`kill -9` at random moments: no line twice, none lost, and every image that of the pipeline alone."""
    prompts, out, rng = tmp_path / "prompts.txt", tmp_path / "out", random.Random(0)
    texts = [f"a penguin, number {number}" for number in range(MANY)]
    prompts.write_text("\n".join(texts))
    command = [sys.executable, "-m", "ldmrt", "batch", str(bundle), str(prompts), str(out), *OPTIONS]

    def indexed() -> int:
        return (out / "index.jsonl").read_bytes().count(b"\n") if (out / "index.jsonl").exists() else 0

    left = list[int]()
    for kill in range(RANDOM_KILLS):
        begun = indexed()
        ldmrt = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # some while it starts or resumes, most while it draws
        lines, seconds = (0, rng.uniform(0, 2)) if kill % 5 == 0 else (rng.randint(1, 12), rng.uniform(0, 0.05))
        while ldmrt.poll() is None and indexed() < begun + lines:
            time.sleep(0.001)
        time.sleep(seconds)
        assert ldmrt.poll() is None, "it has ended before it was killed"
        ldmrt.send_signal(signal.SIGKILL)
        assert ldmrt.wait() == -signal.SIGKILL
        left.append(indexed())
        assert left[-1] >= begun + lines
    assert 0 < left[-1] < MANY, left
    assert subprocess.run(command, capture_output=True).returncode == 0
    entries = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    assert [(entry["line"], entry["status"], entry["seeds"]) for entry in entries] == [
        (number, "done", [4 + number]) for number in range(1, MANY + 1)
    ]
    named = [file for entry in entries for file in entry["files"]]
    assert sorted(files_in(out)) == sorted([*named, "batch.json", "index.jsonl"])
    assert len(set(named)) == MANY
    with open_pipeline(bundle) as pipeline:
        for number in range(0, MANY, 5):
            alone = pipeline(texts[number], num_inference_steps=3, seed=5 + number).pixels[0]
            with Image.open(out / named[number]) as image:
                np.testing.assert_array_equal(np.asarray(image), alone)


@pytest.mark.slow(minutes=0.05)
@pytest.mark.usefixtures("default_signals")  # the process that is started here inherits them
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_it_and_it_goes_on(bundle: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    """What is drawn at that moment is finished and indexed."""
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("\n".join(f"a penguin, number {line}" for line in range(MANY)))
    command = [sys.executable, "-m", "ldmrt", "batch", str(bundle), str(prompts), str(out), *OPTIONS]
    ldmrt: Any = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while ldmrt.poll() is None and not (out / "index.jsonl").exists():
        time.sleep(0.001)
    ldmrt.send_signal(number)
    _, errors = ldmrt.communicate()
    assert ldmrt.returncode == code, errors
    entries = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in entries] == list(range(1, len(entries) + 1))
    assert errors.count("stopping: what is being drawn is finished first") == 1
    assert f"{len(entries)} of {MANY} lines: {len(entries)} drawn, 0 failed" in errors
    assert sorted(files_in(out)) == sorted([*(entry["files"][0] for entry in entries), "batch.json", "index.jsonl"])
