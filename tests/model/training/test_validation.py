"""Held-out images: divided by their bytes, never trained on, and measured without touching the run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ldmrt.model.training.data.captioned import ImageFolder, Sample
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.loop.task import Losses, TrainingTask
from ldmrt.model.training.validation import split, validation_losses
from ldmrt.runtime import LdmrtError

COUNT = 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty images, each with a copy under another name."""
    rows = []
    for i in range(COUNT):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        for name in (f"{i}.png", f"copy-of-{i}.png"):
            Image.fromarray(pixels).save(tmp_path / name)
            rows.append(json.dumps({"file_name": name, "text": name}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    return tmp_path


def test_copies_are_on_one_side(folder: Path) -> None:
    images = ImageFolder.open(folder, size=8)
    train, held = split(images, 0.3)
    names = [{row.text for row in side.rows} for side in (train, held)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 2 * COUNT
    assert 6 <= len(names[1]) / 2 <= 32  # of 60; four standard deviations are 14
    for side in names:
        assert {f"copy-of-{name}" for name in side if not name.startswith("copy")} <= side
    larger = {row.text for row in split(images, 0.5)[1].rows}
    assert names[1] < larger  # a larger share holds out more of the same


def test_skipped_images_are_held_out_by_none(folder: Path) -> None:
    """What is measured are the others, each once."""
    images = ImageFolder.open(folder, size=8)
    _, held = split(images, 0.3)
    lost = frozenset(row.file_name for row in held.rows[:3])
    train, fewer = split(replace(images, skipped=lost), 0.3)
    assert {row.file_name for row in fewer.rows} == {row.file_name for row in held.rows} - lost
    assert sorted(fewer.draw(5, i).caption for i in range(len(fewer))) == sorted(row.text for row in fewer.rows)
    assert not lost & {train.draw(0, i).caption for i in range(len(train))}


@pytest.mark.parametrize(("share", "problem"), [(1e-9, "for the validation"), (1.0, "to train on")])
def test_a_share_that_leaves_nothing_is_refused(folder: Path, share: float, problem: str) -> None:
    with pytest.raises(LdmrtError, match=f"leaves no image {problem}; expected another share; found 120 images"):
        split(ImageFolder.open(folder, size=8), share)


class Mean(nn.Module):
    """Predicts one number for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand(len(x))


def bright(samples: list[Sample]) -> Tensor:
    return torch.tensor([float(sample.image.mean()) / 255 for sample in samples])


def task_of(module: nn.Module, images: ImageFolder, seen: list[str]) -> TrainingTask:
    def loss_of(samples: list[Sample], draws: Draws) -> Losses:
        seen.extend(sample.caption for sample in samples)
        x = bright(samples)
        return {"error": (module(x) - x).square(), "noise": draws.uniform("noise")}

    return TrainingTask(images, loss_of)


def test_the_loss_is_the_averages_and_the_run_is_left_alone(folder: Path) -> None:
    train, held = split(ImageFolder.open(folder, size=8), 0.3)
    settings, finals = Settings(steps=20, batch=7, learning_rate=0.1, warmup=1), []
    for validated in (False, True):
        module, seen = Mean(), list[str]()
        run = Run(module, settings)
        task = task_of(module, train, seen)
        measured = []
        for _ in run.optimise(task):
            if validated:
                measured.append(validation_losses(run, task_of(module, train, []), held))
                assert module.training
        finals.append(module.value.item())
        assert not set(seen) & {row.text for row in held.rows}
    assert finals[0] == finals[1]
    first = [held.draw(0, i) for i in range(len(held))]
    expected = (run.average["value"] - bright(first)).square().mean()
    assert measured[-1]["error"] == pytest.approx(float(expected), rel=1e-6)  # float32
    assert len({losses["noise"] for losses in measured}) == 1  # the same draws each time
    assert len({losses["error"] for losses in measured}) == 20


def test_draws_of_another_stream_are_others() -> None:
    one, other = Draws(0, range(4)), Draws(0, range(4), stream="validation")
    assert not torch.equal(one.uniform("noise"), other.uniform("noise"))
    assert torch.equal(other.of(torch.tensor([True] * 4)).uniform("noise"), other.uniform("noise"))
