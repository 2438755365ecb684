"""The log of a training: means of steps, equal to those of all samples, and files that were cut off."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ldmrt.model.training.log import Log, read_log
from ldmrt.model.training.loop.task import Progress
from ldmrt.runtime import LdmrtError, LdmrtWarning

BATCH, STEPS = 4, 7


def steps() -> list[Progress]:
    """Seven steps whose losses and timesteps are random, between which nothing is even."""
    random, made = np.random.default_rng(0), []
    for step in range(1, STEPS + 1):
        losses = {name: torch.from_numpy(random.random(BATCH)) for name in ("reconstruction", "kl")}
        noted = {"timesteps": torch.from_numpy(random.integers(0, 50, BATCH))}
        total = float(sum(value.mean() for value in losses.values()))
        made.append(Progress(step, STEPS, total, 9.5, losses, noted, 0.1 * step, float(step)))
    return made


def test_a_line_is_the_mean_of_its_samples(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl", 3, 50)
    for progress in steps():
        log.add(progress, skipped=2)
    lines = read_log(tmp_path / "log.jsonl")
    assert [line["step"] for line in lines] == [3, 6, 7]
    for line, taken in zip(lines, (steps()[:3], steps()[3:6], steps()[6:]), strict=True):
        assert line["samples"] == line["step"] * BATCH
        assert line["loss"] == pytest.approx(np.mean([one.loss for one in taken]), rel=1e-12)
        for name, value in line["parts"].items():
            assert value == pytest.approx(np.mean([one.losses[name].numpy() for one in taken]), rel=1e-12)
        pairs = [
            (int(t), float(a + b))
            for one in taken
            for t, a, b in zip(one.noted["timesteps"], *one.losses.values(), strict=True)
        ]
        for place, found in enumerate(line["loss_by_timestep"]):
            there = [loss for t, loss in pairs if 5 * place <= t < 5 * place + 5]
            assert found == (pytest.approx(np.mean(there), rel=1e-12) if there else None)
        assert line["gradient_norm"] == pytest.approx(np.mean([one.step for one in taken]))
        assert (line["learning_rate"], line["skipped"]) == (taken[-1].learning_rate, 2)
        assert line["memory_mb"] > 50  # Python and torch


def test_without_timesteps_there_is_no_loss_by_them(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl", 1, 0)
    log.add(Progress(1, 1, 1.0, 1.0, {"kl": torch.ones(2)}, {}, 1.0, 1.0))
    (line,) = read_log(tmp_path / "log.jsonl")
    assert "loss_by_timestep" not in line


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = Log(path, 1, 50)
    for progress in steps():
        log.add(progress)
    whole = path.read_text()
    path.write_text(whole[:-9])
    assert [line["step"] for line in read_log(path)] == [1, 2, 3, 4, 5, 6]
    Log(path, 1, 50, step=4)
    assert path.read_text() == "".join(whole.splitlines(keepends=True)[:4])


def test_a_log_that_goes_on_counts_on(tmp_path: Path) -> None:
    """Also after another batch; damaged lines are left out with a warning."""
    path, taken = tmp_path / "log.jsonl", steps()
    log = Log(path, 2, 50)
    for progress in taken[:4]:
        log.add(progress, skipped=3)
    with path.open("a") as file:
        file.write("no line\n")
    with pytest.warns(LdmrtWarning, match="1 damaged lines of .* are removed"):
        log = Log(path, 2, 50, step=4)
    larger = {name: torch.cat([value, value]) for name, value in taken[4].losses.items()}
    log.add(replace(taken[4], losses=larger, noted={}), skipped=1)
    log.write(taken[4], skipped=1)
    lines = read_log(path)
    assert [(line["step"], line["samples"], line["skipped"]) for line in lines] == [(2, 8, 3), (4, 16, 3), (5, 24, 4)]


def test_a_validation_loss_that_is_not_finite_can_be_read(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl", 1, 0)
    log.validated(1, {"kl": float("inf"), "reconstruction": 1.0})
    (line,) = read_log(tmp_path / "log.jsonl")
    assert line == {"step": 1, "loss": None, "validation": {"kl": None, "reconstruction": 1.0}}


def test_a_folder_in_the_place_of_the_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(LdmrtError, match=r"log\.jsonl is a folder"):
        Log(tmp_path / "log.jsonl", 1, 0)


WHOLE = {
    "step": 1, "samples": 2, "loss": 1.0, "parts": {"kl": 1.0}, "learning_rate": 0.1, "gradient_norm": 1.0,
    "images_per_second": 1.0, "skipped": 0, "memory_mb": 1.0,
}  # fmt: skip
LINE = {"step": 1, "loss": 1.0, "validation": {"kl": 1.0}}


@pytest.mark.parametrize(
    "damage",
    [
        "no log", "[]", "[" * 100_000, json.dumps({"step": 1}), json.dumps({"step": 1, "loss": 1.0}),
        *(json.dumps(LINE | change) for change in (
            {"step": "1"}, {"loss": float("nan")}, {"validation": {"kl": "x"}}, {"validation": [1]},
        )),
        *(json.dumps(WHOLE | change) for change in (
            {"loss": None}, {"parts": [1]}, {"samples": 10**400}, {"gradient_norm": "x"}, {"loss_by_timestep": ["x"]},
        )),
        *(json.dumps({name: value for name, value in WHOLE.items() if name != left}) for left in WHOLE),
    ],
)  # fmt: skip
def test_a_damaged_line_is_one_error(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{json.dumps(WHOLE)}\n")
    assert len(read_log(path)) == 2
    path.write_text(f"{json.dumps(LINE)}\n{damage}\n")
    with pytest.raises(LdmrtError, match=r"line 2 is not a line of a training's log; found"):
        read_log(path)
