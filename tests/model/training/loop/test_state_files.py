"""A state on the disk: plain JSON, safetensors and their digests, from which a run goes on to the bit."""

import gc
import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.states.files import SUMS, TENSORS, VALUES, damage, read_state, write_state
from ldmrt.model.training.loop.task import Progress

from ..tiny_runs import SETTINGS, minimising, saved


def begin(optimizer: str) -> tuple[Run, Iterator[Progress]]:
    """A convolution, whose weights are stored with their channels last."""
    torch.manual_seed(0)
    run = Run(nn.Conv2d(3, 5, 3), replace(SETTINGS, steps=6, optimizer=optimizer, ema=(0.9, 0.5)))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return run, minimising(lambda: (run.module(x) - 1).square().mean(), run)


@pytest.mark.parametrize("old", [False, True], ids=["folder", "torch.save"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lion"])
def test_a_resumed_run_has_the_bits_and_the_layout_of_the_saved_one(optimizer: str, old: bool, tmp_path: Path) -> None:
    whole, steps = begin(optimizer)
    losses = [progress.loss for progress in steps]
    first, steps = begin(optimizer)
    halves = [progress.loss for progress in itertools.islice(steps, 3)]
    if old:
        torch.save(first.state(), tmp_path / "state")
    else:
        first.save(tmp_path / "state")
    second, steps = begin(optimizer)
    second.resume(tmp_path / "state")
    assert not whole.module.weight.is_contiguous()
    for run in (second, whole):
        for moments in run.optimizer.state.values():
            for value in (value for value in moments.values() if value.dim() == 4):
                assert value.stride() == whole.module.weight.stride()
        assert all(value["weight"].stride() == whole.module.weight.stride() for value in run.averages.each.values())
    assert halves + [progress.loss for progress in steps] == losses
    whole.save(tmp_path / "whole")
    second.save(tmp_path / "second")
    for name in (VALUES, TENSORS, SUMS):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system has no /proc/self/maps")
def test_a_resumed_run_lets_go_of_the_file(tmp_path: Path) -> None:
    """Its disk space is free once it is removed."""
    first, steps = begin("adamw")
    next(steps)
    first.memory = {"losses": torch.ones(3)}
    first.save(tmp_path / "state")
    second, _ = begin("adamw")
    second.resume(tmp_path / "state")
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_what_a_state_holds_can_be_read_by_anybody(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert sorted(file.name for file in path.iterdir()) == sorted([VALUES, TENSORS, SUMS])
    values = json.loads((path / VALUES).read_text())
    assert (values["step"], values["about"]["batch"], values["optimizer"]["param_groups"][0]["lr"]) == (1, 3, 0.01)
    with safe_open(path / TENSORS, "pt") as file:
        assert "module/weight" in file.keys()  # noqa: SIM118
        assert "optimizer/state/0/exp_avg" in file.keys()  # noqa: SIM118


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="this system has no sha256sum")
def test_digests_are_those_of_sha256sum(tmp_path: Path) -> None:
    path = saved(tmp_path)
    command = ["sha256sum", "--check", "--strict", SUMS]
    assert subprocess.run(command, cwd=path, check=True, capture_output=True, text=True).stdout.count(": OK") == 2
    (path / TENSORS).write_bytes((path / TENSORS).read_bytes()[:-1] + b"\x01")
    assert subprocess.run(command, cwd=path, check=False, capture_output=True).returncode == 1
    assert damage(path) == f"{TENSORS} has another SHA-256"


@pytest.mark.parametrize(
    "kind", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int32, torch.int64]
)
def test_tensors_of_all_kinds_come_back(kind: torch.dtype, tmp_path: Path) -> None:
    state = {
        "a": {"b/c": torch.tensor([[1, 2], [3, 4]], dtype=kind).t(), "c": torch.tensor(5, dtype=kind)},
        "empty": torch.zeros(0, 3, dtype=kind),
        "odd": torch.ones(3, dtype=torch.uint8),  # one byte each, after which the next would not begin at a multiple
        "z": torch.ones(2, dtype=kind),
        "plain": {"1": [0.1, None, True, "é"], "none": {}},
    }
    write_state(tmp_path / "state", state)
    found = read_state(tmp_path / "state")
    assert found["plain"] == state["plain"]
    for one, other in ((found, state), (found["a"], state["a"])):
        for name in ("b/c", "c") if "c" in other else ("empty", "odd", "z"):  # type: ignore[operator]
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)  # type: ignore[index]
