"""Regularisation images beside those of a training: the steps of diffusers' train_dreambooth.py."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldmrt.model.checkpoint.load import load
from ldmrt.model.training.data.captioned import ImageFolder
from ldmrt.model.training.data.masks import LossMasks
from ldmrt.model.training.data.regularisation import Regularisation
from ldmrt.model.training.diffusion.objective import Objective
from ldmrt.model.training.diffusion.timesteps import Importance
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.loop.processes import Processes
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.loop.task import Progress, TrainingTask
from ldmrt.model.training.tasks.finetune import Conditions, Denoiser, conditioned_task
from ldmrt.model.training.validation import validation_losses

from ..captioned import Three, task_of
from ..loop.test_processes import assert_same
from ..resumed import assert_resumes
from .diffusers_steps import steps_of_diffusers

SETTINGS = Settings(steps=5, batch=2, learning_rate=1e-4, warmup=0, schedule="constant", seed=3)
WEIGHT = 0.7


@pytest.fixture
def regularisation(tmp_path: Path) -> Regularisation:
    """Five images of other sizes than the training's, with captions beside them."""
    folder = tmp_path / "others"
    folder.mkdir()
    for i in range(5):
        pixels = np.random.default_rng(10 + i).integers(0, 256, (18 + i, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"fruit {i}")
    shapes = {f"{i}.png": (20, 18 + i) for i in range(5)}
    return Regularisation(replace(ImageFolder.open(folder, size=16), shapes=shapes), WEIGHT)


@pytest.mark.parametrize(("family", "train_text"), [("sd15", False), ("sd2-v", True), ("sdxl", True)])
def test_five_steps_are_those_of_dreambooth(
    family: str, train_text: bool, folders: Callable[[str], Path], regularisation: Regularisation
) -> None:
    checkpoint = load(folders(family))
    denoiser = Denoiser.of(checkpoint, train_text_encoders=train_text)
    task = task_of(checkpoint, denoiser, regularisation=regularisation)
    losses = [progress.loss for progress in Run(denoiser, SETTINGS).optimise(task)]
    expected, weights = steps_of_diffusers(folders(family), train_text, regularisation=regularisation)
    assert losses[0] == pytest.approx(expected[0], rel=1e-6)  # float32 sums in another order
    assert losses == pytest.approx(expected, rel=1e-5)  # and those of four steps before
    for key, value in denoiser.state_dict().items():
        if not key.endswith("k_proj.bias"):  # its gradient is zero but for rounding, of which AdamW takes the sign
            error = (value - weights[key]).norm() / weights[key].norm()
            assert error <= 1e-5, (key, error)  # rounding of gradients, and AdamW divides small ones by themselves


def test_gradients_are_those_of_two_batches(folders: Callable[[str], Path], regularisation: Regularisation) -> None:
    """Of the training's images alone, and of the others as if they were trained on, times their weight."""
    checkpoint = load(folders("sd15"))
    denoiser = Denoiser.of(checkpoint)
    task, plain = (task_of(checkpoint, denoiser, regularisation=each) for each in (regularisation, None))
    samples = [replace(Three().draw(3, i), index=i) for i in range(4)]
    others = [regularisation.beside(sample, 3, sample.index) for sample in samples]
    both = [replace(one, regularisation=other) for one, other in zip(samples, others, strict=True)]

    def gradient(task: TrainingTask, samples: list, stream: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        losses = task.loss_of(samples, Draws(3, range(4), stream=stream))
        torch.stack(list(losses.values())).sum().backward()
        taken = torch.cat([weight.grad.flatten() for weight in denoiser.unet.parameters() if weight.grad is not None])
        denoiser.zero_grad()
        return {name: value.detach() for name, value in losses.items()}, taken

    (first, one), (second, other) = (
        gradient(plain, each, stream) for each, stream in ((samples, ""), (others, "regularisation "))
    )
    joint, whole = gradient(task, both, "")
    # float32: kernels sum a batch of eight in another order than two of four
    torch.testing.assert_close(joint["denoising"], first["denoising"], rtol=1e-5, atol=0)
    torch.testing.assert_close(joint["regularisation"], WEIGHT * second["denoising"], rtol=1e-5, atol=0)
    assert ((one + WEIGHT * other - whole).norm() / whole.norm()).item() <= 1e-5
    assert ((one - whole).norm() / whole.norm()).item() > 0.1  # they count


def begins(
    folders: Callable[[str], Path], regularisation: Regularisation, settings: Settings
) -> Callable[[], tuple[Run, Iterator[Progress]]]:
    def begin() -> tuple[Run, Iterator[Progress]]:
        checkpoint = load(folders("sd15"))
        denoiser = Denoiser.of(checkpoint)
        run = Run(denoiser, settings)
        return run, run.optimise(task_of(checkpoint, denoiser, regularisation=regularisation))

    return begin


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_takes_the_same_steps(
    accumulate: int, folders: Callable[[str], Path], regularisation: Regularisation, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, steps=6, schedule="cosine", accumulate=accumulate)
    assert_resumes(begins(folders, regularisation, settings), tmp_path / "state")


@pytest.mark.slow(minutes=0.05)
def test_two_processes_and_two_parts_take_the_same_steps(
    folders: Callable[[str], Path], regularisation: Regularisation, tmp_path: Path
) -> None:
    checkpoint = folders("sd15")

    def begin(processes: Processes, settings: Settings) -> tuple[Run, TrainingTask]:
        loaded = load(checkpoint)
        denoiser = Denoiser.of(loaded)
        return Run(denoiser, settings, processes=processes), task_of(loaded, denoiser, regularisation=regularisation)

    assert_same(begin, 2, tmp_path)  # in accumulated parts too


def test_held_out_images_are_measured_alone(folders: Callable[[str], Path], regularisation: Regularisation) -> None:
    checkpoint = load(folders("sd15"))
    denoiser = Denoiser.of(checkpoint)
    run = Run(denoiser, SETTINGS)
    found = [
        validation_losses(run, task_of(checkpoint, denoiser, regularisation=each), Three())  # type: ignore[arg-type]
        for each in (regularisation, None)
    ]
    assert found[0] == found[1]
    assert found[0].keys() == {"denoising"}


def test_draws_of_timesteps_learn_from_the_training_alone(
    folders: Callable[[str], Path], regularisation: Regularisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A regularisation image has a timestep of its own, so its loss says nothing of the one beside it."""
    checkpoint = load(folders("sd15"))
    denoiser = Denoiser.of(checkpoint)
    learned = list[tuple[torch.Tensor, torch.Tensor]]()
    monkeypatch.setattr(Importance, "learn", lambda self, losses, noted: learned.append((losses, noted["timesteps"])))
    objective = Objective.of(checkpoint.scheduler, "cpu", timesteps="importance")
    monkeypatch.setattr(Objective, "of", lambda *_, **__: objective)
    run = Run(denoiser, replace(SETTINGS, steps=1))
    (progress,) = run.optimise(task_of(checkpoint, denoiser, regularisation=regularisation))
    ((losses, timesteps),) = learned
    assert torch.equal(losses, progress.losses["denoising"])
    assert torch.equal(timesteps, Importance(1000).draw(Draws(3, range(2))))
    others = progress.noted["timesteps of regularisation"]
    assert torch.equal(others, Importance(1000).draw(Draws(3, range(2), stream="regularisation ")))
    assert not torch.equal(others, timesteps)


def test_masks_are_of_the_training_alone(folders: Callable[[str], Path], regularisation: Regularisation) -> None:
    """Without a mask, a regularisation image counts whole."""
    checkpoint = load(folders("sd15"))
    denoiser = Denoiser.of(checkpoint)

    class Black(LossMasks):
        def __init__(self) -> None:
            pass

        def __call__(self, samples: object, size: object) -> np.ndarray:
            return np.zeros((len(samples), 1, *size), np.float32)  # type: ignore[arg-type,misc]

    plain = task_of(checkpoint, denoiser, regularisation=regularisation)
    conditions, objective = Conditions.of(checkpoint.stage, 0.5), Objective.of(checkpoint.scheduler, "cpu")
    tokenize = {"text_encoder": lambda captions: np.zeros((len(captions), 4), np.int64)}
    samples = [replace(Three().draw(3, i), index=i) for i in range(2)]
    both = [replace(one, regularisation=regularisation.beside(one, 3, one.index)) for one in samples]
    tasks = [
        conditioned_task(
            denoiser, plain.data, checkpoint.vae, tokenize, objective, conditions,  # type: ignore[arg-type]
            masks=masks, regularisation=regularisation,
        )
        for masks in (Black(), None)
    ]  # fmt: skip
    masked, whole = (task.loss_of(both, Draws(3, range(2))) for task in tasks)
    assert not masked["denoising"].any()
    assert torch.equal(masked["regularisation"], whole["regularisation"])
