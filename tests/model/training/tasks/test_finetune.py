"""Fine-tuning takes the steps of diffusers' examples train_text_to_image.py and train_text_to_image_sdxl.py."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldmrt.model.checkpoint.load import load
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.loop.task import Progress
from ldmrt.model.training.tasks.finetune import Denoiser
from ldmrt.model.training.validation import validation_losses
from ldmrt.runtime import LdmrtError

from ....support.pipelines import save_pipeline
from ..captioned import Three, task_of
from ..resumed import assert_resumes
from .diffusers_steps import steps_of_diffusers

FAMILIES = ("sd15", "sd2-v", "sdxl")
SETTINGS = Settings(steps=5, batch=2, learning_rate=1e-4, warmup=0, schedule="constant", seed=3)


@pytest.mark.parametrize("train_text", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_five_steps_are_those_of_diffusers(family: str, train_text: bool, folders: Callable[[str], Path]) -> None:
    checkpoint = load(folders(family))
    denoiser = Denoiser.of(checkpoint, train_text_encoders=train_text)
    first = {key: value.clone() for key, value in denoiser.state_dict().items()}
    run = Run(denoiser, SETTINGS)
    losses = [progress.loss for progress in run.optimise(task_of(checkpoint, denoiser))]
    expected, weights = steps_of_diffusers(folders(family), train_text)
    assert losses[0] == pytest.approx(expected[0], rel=1e-6)  # float32 sums in another order
    assert losses == pytest.approx(expected, rel=1e-5)  # and those of four steps before
    ours = denoiser.state_dict()
    assert ours.keys() == weights.keys()
    for key, value in weights.items():
        learns = train_text or key.startswith("unet.")
        if not learns:
            assert torch.equal(ours[key], first[key]), key
        if not key.endswith(
            "k_proj.bias"
        ):  # softmax takes no notice of it: its gradient is zero, and AdamW takes signs
            error = (ours[key] - value).norm() / value.norm()
            assert error <= 1e-5, (key, error)  # rounding of gradients, and AdamW divides small ones by themselves
    assert any(not torch.equal(ours[key], first[key]) for key in first if key.startswith("text_encoder")) is train_text


@pytest.mark.slow(minutes=0.13)
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("family", "train_text"), [("sd15", False), ("sdxl", True)])
def test_a_resumed_run_takes_the_same_steps(
    family: str, train_text: bool, accumulate: int, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    settings = replace(SETTINGS, steps=6, schedule="cosine", accumulate=accumulate)

    def begin() -> tuple[Run, Iterator[Progress]]:
        checkpoint = load(folders(family))
        denoiser = Denoiser.of(checkpoint, train_text_encoders=train_text)
        run = Run(denoiser, settings)
        return run, run.optimise(task_of(checkpoint, denoiser))

    assert_resumes(begin, tmp_path / "state")


def test_text_encoders_have_no_dropout_in_training(folders: Callable[[str], Path]) -> None:
    """It would draw from a generator that a resumed run does not continue."""
    denoiser = Denoiser.of(load(folders("sd15")), train_text_encoders=True)
    for module in denoiser.text_encoder.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.5
    run, ids = Run(denoiser, SETTINGS), torch.tensor([[1, 5, 7, 2]])
    assert run.module.unet.training
    one, other = (run.module.text_encoder(ids).last_hidden_state for _ in range(2))
    assert torch.equal(one, other)


def test_frozen_weights_are_kept_once(folders: Callable[[str], Path]) -> None:
    """Neither the optimizer nor the average nor the state has them, and the average's copy has them unchanged."""
    checkpoint = load(folders("sd15"))
    denoiser = Denoiser.of(checkpoint)
    run = Run(denoiser, replace(SETTINGS, steps=1))
    list(run.optimise(task_of(checkpoint, denoiser)))
    unet = len(list(denoiser.unet.parameters()))
    assert len(run.optimizer.param_groups[0]["params"]) == unet
    for kept in (run.average, run.state()["module"]):
        assert len(kept) == unet  # type: ignore[arg-type]
        assert all(name.startswith("unet.") for name in kept)  # type: ignore[attr-defined]
    assert all(weight.grad is None for weight in denoiser.text_encoder.parameters())
    averaged = run.averaged()
    for name, value in denoiser.text_encoder.state_dict().items():
        assert torch.equal(averaged.text_encoder.state_dict()[name], value)


def test_validation_sees_the_average_and_leaves_the_weights(folders: Callable[[str], Path]) -> None:
    checkpoint = load(folders("sd15"))
    denoiser = Denoiser.of(checkpoint)
    run = Run(denoiser, replace(SETTINGS, steps=2))
    task = task_of(checkpoint, denoiser)
    list(run.optimise(task))
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    losses = validation_losses(run, task, Three())  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())
    averaged = Run(run.averaged(), SETTINGS)
    assert validation_losses(averaged, task_of(checkpoint, averaged.module), Three()) == losses  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("lcm", "would unlearn its few steps; expected Stable Diffusion 1, 2 or XL; found guidance_scale"),
        ("sd15-inpainting", "reads more than captioned images give; .* found mask, masked_image"),
        ("sdxl-refiner", "reads more than captioned images give; .* found sizes"),
        ("classes", "reads more than captioned images give; .* found class"),
        ("ddpm", "the model reads no prompt"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(family: str, message: str, tmp_path: Path) -> None:
    checkpoint = load(save_pipeline(family, tmp_path))
    with pytest.raises(LdmrtError, match=message):
        Denoiser.of(checkpoint)
