"""`ldmrt train --processes`: one training, whose exit code, messages and files are those of a single process."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from ldmrt.model.training.loop.states.kept import OLD, saved_states

from ....support.image_files import save_noise
from ...console.records.cards import card_of
from .saved import last_state

LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu")
SECONDS = 120  # a hung process is a failure


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of a training of three steps, without its folder."""
    folder = save_noise(tmp_path_factory.mktemp("pictures"), 6)
    line = f"train autoencoder --data {folder} --size 16 --batch 4 --steps 3 --log-every 1 --optimizer sgd"
    return line.split()


def start(*command: object) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *map(str, command)], stdout=pipe, stderr=pipe, text=True)


def run(*command: object) -> tuple[int, str, str]:
    child = start(*command)
    out, err = child.communicate(timeout=SECONDS)
    return child.returncode, out, err


def assert_close(folder: Path, other: Path) -> None:
    """The states of two trainings are those of the same steps."""
    one, two = map(last_state, (folder, other))
    assert one.keys() == two.keys()
    assert one["about"] == two["about"]
    for part in ("module", "average"):
        pairs = [(value.double(), two[part][name].double()) for name, value in one[part].items()]
        whole = torch.stack([value.norm() for value, _ in pairs]).norm()
        # 1e-6: float32 gradients are summed in another order
        assert torch.stack([(value - found).norm() for value, found in pairs]).norm() <= 1e-6 * whole


@pytest.mark.slow(minutes=0.29)
def test_two_processes_are_one_training(ldmrt: Any, words: list[str], tmp_path: Path) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert ldmrt(*words, "--out", alone).code == 0
    code, out, err = run("-m", "ldmrt", *words, "--out", both, "--processes", 2)
    assert code == 0, err
    assert out == ""
    said = [line.split(":")[0] for line in err.splitlines() if not line.startswith("3/3 ")]  # the progress
    assert said[:2] == ["6/6 images checked", "step 3"]
    assert len(said) == 3
    assert said[2].startswith("3 steps in ")
    assert_close(alone, both)
    names = [sorted(path.relative_to(each) for path in each.rglob("*")) for each in (alone, both)]
    assert names[0] == names[1]
    assert (both / "recipe.toml").read_text() == (alone / "recipe.toml").read_text()
    assert card_of(both).replace("both", "alone") == card_of(alone)
    lines = [[json.loads(line) for line in (each / "log.jsonl").read_text().splitlines()] for each in (alone, both)]
    for one, two in zip(*lines, strict=True):
        assert (two["step"], two["samples"]) == (one["step"], one["samples"])
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)


@pytest.mark.slow
def test_an_error_is_one_message(words: list[str], tmp_path: Path) -> None:
    (tmp_path / OLD).parent.mkdir()
    (tmp_path / OLD).write_text("")
    code, _, err = run("-m", "ldmrt", *words, "--out", tmp_path, "--processes", 2)
    assert code == 2
    assert re.fullmatch(rf"error: train: {tmp_path / OLD} exists already\n  try: .*\n", err)


@pytest.mark.slow
def test_another_number_than_the_launchers_is_refused(words: list[str], tmp_path: Path) -> None:
    one = (*LAUNCH, "--num_processes", 2, "-m", "ldmrt", *words, "--out", tmp_path)
    code, _, err = run(*one, "--processes", 3)
    assert code == 1  # accelerate's
    assert err.count("error: train: --processes is not the launcher's number; expected 2; found 3") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("whom", "name", "code"), [(0, "SIGTERM", 143), (1, "SIGTERM", 143), (None, "SIGKILL", -9)])
def test_a_signal_to_any_ends_all_with_a_state(
    whom: int | None, name: str, code: int, words: list[str], tmp_path: Path
) -> None:
    """To a process or, without its number, to the launcher; test_processes_killed.py sends the others. Before it, one
    to the launcher that saves is passed on.
    """
    changed = ("--steps", 100000, "--save-every", 100000, "--out", tmp_path, "--processes", 2)
    launcher, log = start("-m", "ldmrt", *words, *changed), tmp_path / "log.jsonl"
    wait_for(lambda: log.is_file() and log.stat().st_size)
    launcher.send_signal(signal.SIGUSR1)
    wait_for(lambda: saved_states(tmp_path))
    assert launcher.poll() is None
    workers = {int(one.environ()["RANK"]): one for one in psutil.Process(launcher.pid).children()}
    assert sorted(workers) == [0, 1]
    begin = time.monotonic()
    (launcher if whom is None else workers[whom]).send_signal(getattr(signal, name))
    _, err = launcher.communicate(timeout=SECONDS)
    wait_for(lambda: not any(one.is_running() for one in workers.values()))
    assert time.monotonic() - begin < 10  # the specification's; it takes about 3
    assert launcher.returncode == code
    assert "error:" not in err
    saved = last_state(tmp_path)["step"]
    logged = json.loads(log.read_text().splitlines()[-1])["step"]
    assert saved >= logged - 1  # the step in which the other was killed has no log


def wait_for(condition: Any) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_two_machines_are_one_training(words: list[str], tmp_path: Path) -> None:
    """Two launches of accelerate on this one, and one launch of it, have the same bits."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = ("--num_machines", 2, "--main_process_ip", "127.0.0.1", "--main_process_port", port)
    line = ("--num_processes", 2, "-m", "ldmrt", *words, "--out")
    children = [start(*LAUNCH, *machines, "--machine_rank", rank, *line, tmp_path / "two") for rank in (0, 1)]
    ends = [child.communicate(timeout=SECONDS) for child in children]
    assert [child.returncode for child in children] == [0, 0], ends
    assert ["3 steps in " in err for _, err in ends] == [True, False]  # the second machine is silent
    code, _, err = run(*LAUNCH, *line, tmp_path / "one")
    assert code == 0, err
    one, two = (last_state(tmp_path / each)["module"] for each in ("one", "two"))
    assert all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.slow(minutes=2)
def test_a_whole_training_in_processes(ldmrt: Any, words: list[str], tmp_path: Path) -> None:
    """An autoencoder and a model in its latents, with validation; resumed by one process."""
    folder = tmp_path / "ae"
    assert ldmrt(*words, "--out", folder).code == 0
    data = words[words.index("--data") + 1]
    line = f"train ldm --data {data} --size 16 --batch 3 --autoencoder {folder} --validation 0.3 --vocabulary 600"
    line += " --optimizer sgd --save-every 2"
    whole = ldmrt(*line.split(), "--steps", 4, "--schedule", "constant", "--out", tmp_path / "alone")
    assert whole.code == 0, whole.err
    half = (*line.split(), "--schedule", "constant", "--out", tmp_path / "both")
    code, _, err = run("-m", "ldmrt", *half, "--steps", 2, "--processes", 2)
    assert code == 0, err
    assert err.count("validation loss") == 1
    rest = ldmrt(*half, "--steps", 4, "--resume")
    assert rest.code == 0, rest.err
    assert_close(tmp_path / "alone", tmp_path / "both")
