"""A training's log in TensorBoard and in Weights & Biases: the numbers of its file."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ldmrt.model.training.log import Log
from ldmrt.model.training.mirrors import RUN, TensorBoard, WeightsAndBiases, scalars
from ldmrt.runtime.errors import LdmrtWarning

LINES: list[dict[str, Any]] = [
    {"step": 2, "loss": 0.5, "parts": {"kl": 0.1, "nll": 0.4}, "loss_by_timestep": [0.3, None, 0.7], "samples": 4},
    {"step": 2, "loss": None, "validation": {"kl": 0.25, "nll": None}},
    {"step": 4, "loss": 0.25, "parts": {"kl": 0.1, "nll": 0.15}, "loss_by_timestep": [None, 0.2, None], "samples": 8},
]
NUMBERS: list[dict[str, float]] = [
    {
        "loss": 0.5,
        "parts/kl": 0.1,
        "parts/nll": 0.4,
        "loss_by_timestep/0": 0.3,
        "loss_by_timestep/2": 0.7,
        "samples": 4,
    },
    {"validation/kl": 0.25},
    {"loss": 0.25, "parts/kl": 0.1, "parts/nll": 0.15, "loss_by_timestep/1": 0.2, "samples": 8},
]


def test_numbers_of_a_line() -> None:
    assert [scalars(line) for line in LINES] == NUMBERS
    assert scalars({"step": 1, "loss": 0.5, "validation": {"kl": 0.5}}) == {
        "validation/loss": 0.5,
        "validation/kl": 0.5,
    }


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    """Also of a run that was killed after step 6 and goes on from step 2."""
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed (extra tensorboard)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoard(tmp_path, 0)
    for line in (*LINES[:2], {"step": 4, "loss": 9.0}, {"step": 6, "loss": 9.0}):
        first.write(line)
    first.close()
    second = TensorBoard(tmp_path, 2)
    second.write(LINES[2])
    second.close()
    found = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    found.Reload()
    named = {(name, event.step): event.value for name in found.Tags()["scalars"] for event in found.Scalars(name)}
    expected = {
        (name, line["step"]): value
        for line, numbers in zip(LINES, NUMBERS, strict=True)
        for name, value in numbers.items()
    }
    assert named == pytest.approx(expected)  # of float32


@pytest.mark.parametrize("real", [False, True])
def test_weights_and_biases_gets_the_numbers(real: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package, or the package itself, which writes to the disk alone."""
    logged, ids = list[tuple[dict[str, float], int]](), list[str]()
    if real:
        package = pytest.importorskip("wandb", reason="Weights & Biases is not installed (extra wandb)")
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_SILENT", "true")
        init = package.init
    else:
        package = ModuleType("wandb")
        monkeypatch.setitem(sys.modules, "wandb", package)

    def watched(**options: Any) -> Any:
        run = init(**options) if real else SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)
        ids.append(options["id"])
        log = run.log

        def noted(numbers: dict[str, float], step: int) -> None:
            logged.append((numbers, step))
            log(numbers, step=step)

        run.log = noted
        return run

    monkeypatch.setattr(package, "init", watched, raising=False)
    for step, lines in ((0, LINES[:2]), (2, LINES[2:]), (0, LINES[:1])):
        mirror = WeightsAndBiases(tmp_path, "a run", {"batch": 2}, step)
        for line in lines:
            mirror.write(line)
        mirror.close()
    assert logged == [(NUMBERS[0], 2), (NUMBERS[1], 2), (NUMBERS[2], 4), (NUMBERS[0], 2)]
    assert ids[0] == ids[1] != ids[2]  # the third begins anew
    assert (tmp_path / RUN).read_text() == ids[2]


def test_a_mirror_that_fails_costs_the_run_nothing(tmp_path: Path) -> None:
    """Its lines are in the file, once each, and a warning says that it is told no more."""

    class Failing:
        told = 0

        def write(self, line: Any) -> None:
            self.told += 1
            raise ConnectionError("no route to host")

        def close(self) -> None:
            """Do nothing."""

    failing = Failing()
    log = Log(tmp_path / "log.jsonl", 1, 1000, mirrors=[failing])
    with pytest.warns(LdmrtWarning, match="Failing takes no more lines of the log: no route to host"):
        log._append({"step": 1, "loss": 0.5})
    log._append({"step": 2, "loss": 0.25})
    assert failing.told == 1
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
