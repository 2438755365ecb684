"""Wherever a training of two processes is killed, the run that goes on ends with the bits of one that ran through."""

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ldmrt.model.training.loop.states.kept import saved_states

from .saved import last_state, written

pytestmark = pytest.mark.slow(minutes=2)
SECONDS = 120  # a hung process is a failure
KILLS = int(os.environ.get("KILLS", "2"))  # of each training, of those below in turn
STEPS = 14 * KILLS
TASKS = {
    "autoencoder": ("--adversarial", 0.5, "--discriminator-layers", 1, "--accumulate", 2),
    "lora": ("--from", "SOURCE", "--previews", 0, "--rank", 2),
}
LOST = "error: train: another process of this training has ended\n"
KILLED = "error: train: process 0 of 2 was killed; found SIGKILL\n"
# Which process is sent which signal, how the launcher ends then, and what it says
ENDS = {
    "autoencoder": [
        ("launcher", "SIGTERM", 143, ""), (1, "SIGKILL", 2, LOST),
        ("launcher", "SIGINT", 130, "stopped"), (0, "SIGKILL", 2, KILLED),
    ],
    "lora": [
        ("launcher", "SIGINT", 130, "stopped"), (0, "SIGKILL", 2, KILLED),
        ("launcher", "SIGKILL", -9, ""), (1, "SIGTERM", 143, ""),
    ],
}  # fmt: skip


def start(words: tuple[object, ...]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "ldmrt", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def last_step(out: Path) -> int:
    """The last step of a run's log."""
    lines = (out / "log.jsonl").read_text().split("\n")[:-1] if (out / "log.jsonl").is_file() else []
    with contextlib.suppress(ValueError):
        return max((json.loads(line)["step"] for line in lines), default=0)
    return 0


@pytest.mark.parametrize("task", TASKS)
def test_any_end_of_two_processes_is_resumed_to_the_bit(task: str, places: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, source = places
    own = [str(source) if word == "SOURCE" else word for word in TASKS[task]]
    words = ("train", task, "--data", pictures, "--size", 16, "--batch", 3, "--warmup", 0, "--steps", STEPS, *own)
    words = (*words, "--save-every", 5, "--log-every", 1, "--learning-rate", 1e-3, "--processes", 2, "--out")
    whole, out, chance = start((*words, tmp_path / "whole")), tmp_path / "parts", random.Random(task)
    _, err = whole.communicate(timeout=SECONDS)
    assert whole.returncode == 0, err
    for number, (whom, name, code, said) in enumerate(itertools.islice(itertools.cycle(ENDS[task]), KILLS)):
        launcher = start((*words, out, *(("--resume",) if saved_states(out) else ())))
        step = chance.randint(14 * number, 14 * number + 8)
        wait_for(lambda step=step, launcher=launcher: last_step(out) > step or launcher.poll() is not None)
        assert launcher.poll() is None, launcher.communicate()[1]
        workers = {int(one.environ()["RANK"]): one for one in psutil.Process(launcher.pid).children()}
        begin = time.monotonic()
        (workers[whom] if isinstance(whom, int) else launcher).send_signal(getattr(signal, name))
        _, err = launcher.communicate(timeout=SECONDS)
        assert launcher.returncode == code, err
        wait_for(lambda workers=workers: not any(one.is_running() for one in workers.values()))
        assert time.monotonic() - begin < 10  # the specification's; it takes about 3
        assert said in err
        assert err.count("error:") == said.count("error:")
        saved = last_state(out)["step"]
        if (whom, name) == (0, "SIGKILL"):  # the one that saves: what it had saved before is left
            assert saved % 5 == 0
        else:
            assert saved >= last_step(out) - 1  # the step in which the other was killed has no log
        assert step < last_step(out) < STEPS
    rest = start((*words, out, "--resume"))
    _, err = rest.communicate(timeout=SECONDS)
    assert rest.returncode == 0, err
    assert written(out) == written(tmp_path / "whole")
