"""A training that takes no step, only counts them, and is saved as any other."""

import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import SimpleNamespace

import torch

from ldmrt.model.training.loop.processes import ALONE
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.loop.states.files import read_state, write_state
from ldmrt.model.training.loop.states.kept import STATES, state_place
from ldmrt.model.training.loop.task import Progress, TrainingTask
from ldmrt.tools.console.training.run import run_training


class Steps:
    """A training run that only counts, to eight; `within` is called in each step by its number."""

    def __init__(self, within: Callable[[int], object] = lambda step: None) -> None:
        self.step, self.settings, self.torn = 0, Settings(steps=8, batch=6, learning_rate=1e-3), False
        self.skipped: dict[tuple, str] = {}
        self.processes, self.changes = ALONE, list[dict[str, object]]()
        self.within = within
        self.saved, self.kept = list[int](), list[int]()

    def save(self, path: Path) -> None:
        self.saved.append(self.step)
        write_state(path, {"step": self.step})

    def bytes(self) -> int:
        return 3_000_000

    def resume(self, path: Path, change: Collection[str]) -> dict[str, tuple[object, object]]:
        self.step = read_state(path)["step"]
        return dict.fromkeys(change, ("before", "now"))

    def optimise(self, task: TrainingTask) -> Iterator[Progress]:
        while self.step < self.settings.steps:
            self.within(self.step + 1)
            self.step += 1  # a step is never cut in two
            yield Progress(self.step, 8, 0.5, 9.0, {"loss": torch.full((6,), 0.5)}, {}, 1e-3, 2.0)

    def walk(self, out: Path, resume: bool = False, change: Collection[str] = (), keep: int = 3) -> None:
        options = SimpleNamespace(
            out=out, save_every=3, log_every=2, resume=resume, change=change, recipe="", task="ldm", differing={},
            folder=Path("pictures"), group=None, plan=False, tensorboard=False, wandb=False, keep=keep,
            once=lambda make: make(),
        )  # fmt: skip
        task = TrainingTask(None, lambda samples, draws: {})  # type: ignore[arg-type]
        run_training(self, task, options, lambda: self.kept.append(self.step))  # type: ignore[arg-type]


def at(step: int, act: Callable[[], object]) -> Callable[[int], object]:
    """Do this within one step."""
    return lambda now: act() if now == step else None


def fail(error: Exception) -> Callable[[], object]:
    def act() -> object:
        raise error

    return act


def stopped_at(out: Path, step: int) -> None:
    """Leave the state of this step alone, as if a run had been stopped after it."""
    shutil.rmtree(out / STATES, ignore_errors=True)
    write_state(state_place(out, step, regular=False), {"step": step})
