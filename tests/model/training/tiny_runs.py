"""Training runs of networks that are small enough to be checked by hand."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldmrt.model.training.data.captioned import Sample
from ldmrt.model.training.diffusion.objective import Objective
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.loop.task import Progress, TrainingTask

SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


SETTINGS = Settings(steps=4, batch=3, learning_rate=1e-2, warmup=0)


class One:
    """One picture, again and again."""

    def draw(self, seed: int, index: int) -> Sample:
        return Sample(np.zeros((4, 4, 3), np.uint8), "a caption", (index,))


class Silent(nn.Module):
    """Predicts zero, and remembers what it was asked: then the loss is the mean square of the target."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, noised: Tensor, t: Tensor, context: Tensor) -> Tensor:
        self.asked.append((noised, t))
        return self.weight * noised


class Text(nn.Module):
    def forward(self, ids: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=ids)


class Constant(nn.Module):
    """An autoencoder whose latents are certain: a mean of 2 and no variance."""

    config = SimpleNamespace(scaling_factor=0.25, shift_factor=None)

    def encode(self, picture: Tensor) -> Tensor:
        return torch.tensor([2.0, 2.0, -99.0, -99.0])[None, :, None, None].expand(len(picture), 4, 8, 8)


def objective(scheduler: dict[str, Any]) -> Objective:
    return Objective.of(scheduler, "cpu")


def minimising(loss: Callable[[], Tensor], run: Run) -> Iterator[Progress]:
    """A run whose every sample has this loss."""
    return run.optimise(TrainingTask(One(), lambda samples, draws: {"loss": loss().expand(len(samples))}))  # type: ignore[arg-type]


def saved(folder: Path) -> Path:
    run = Run(nn.Linear(2, 2), SETTINGS)
    next(minimising(lambda: run.module(torch.ones(2)).square().sum(), run))
    run.save(folder / "state")
    return folder / "state"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
