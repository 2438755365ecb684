"""Learning rates beside diffusers' schedules, and Lion beside its paper."""

import copy
import itertools
from pathlib import Path

import diffusers.optimization
import pytest
import torch
from torch import Tensor, nn

from ldmrt.model.training.loop.optimizers import OPTIMIZERS, POWER, SCHEDULES, Lion, learning_rate
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings
from ldmrt.runtime import LdmrtError

from ..tiny_runs import minimising


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("warmup", [0, 1, 7, 30])
def test_learning_rates_are_those_of_diffusers(schedule: str, warmup: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.3)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = diffusers.optimization.get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=40, power=POWER
    )
    for step in range(40):
        found = learning_rate(schedule, 0.3, step, 40, warmup)
        assert found == pytest.approx(theirs.get_last_lr()[0], rel=1e-12, abs=1e-15)
        optimizer.step()
        theirs.step()


def test_a_small_rate_does_not_rise() -> None:
    assert all(learning_rate("polynomial", 1e-8, step, 9, 0) == 1e-8 for step in range(9))


def test_lion_is_its_paper() -> None:
    """Algorithm 2, number by number in float64."""
    random = torch.Generator().manual_seed(0)
    start, goals = (torch.randn(4, 3, generator=random, dtype=torch.float64) for _ in range(2))
    weight, lr = nn.Parameter(start.clone()), 0.01
    optimizer = Lion([weight], lr=lr)
    theta, m = start.clone(), torch.zeros_like(start)
    for _ in range(20):
        optimizer.zero_grad()
        (weight - goals).pow(4).sum().backward()
        optimizer.step()
        g = 4 * (theta - goals) ** 3
        theta = theta - lr * torch.sign(0.9 * m + (1 - 0.9) * g)
        m = 0.99 * m + (1 - 0.99) * g
        torch.testing.assert_close(weight.detach(), theta, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_each_learns_and_resumes_to_the_bit(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = Settings(6, 2, 0.05, warmup=0, optimizer=name, schedule="constant")
    first = nn.Linear(3, 3)

    def run_of(module: nn.Module) -> Run:
        return Run(module, settings)

    def loss(run: Run) -> Tensor:
        return (run.module(torch.ones(3)) - 2).square().sum()

    whole = run_of(copy.deepcopy(first))
    losses = [progress.loss for progress in minimising(lambda: loss(whole), whole)]
    assert losses[-1] < losses[0]
    half = run_of(copy.deepcopy(first))
    list(itertools.islice(minimising(lambda: loss(half), half), 3))
    half.save(tmp_path / "state")
    again = run_of(nn.Linear(3, 3))
    again.resume(tmp_path / "state")
    list(minimising(lambda: loss(again), again))
    assert all(torch.equal(value, again.module.state_dict()[key]) for key, value in whole.module.state_dict().items())


def test_steps_of_a_constant_schedule_are_free() -> None:
    assert "steps" not in Settings(3, 1, 1e-3, schedule="constant").shaping()
    assert "steps" in Settings(3, 1, 1e-3).shaping()


@pytest.mark.parametrize(("option", "value"), [("schedule", "cosin"), ("optimizer", "adam")])
def test_unknown_choices_are_refused(option: str, value: str) -> None:
    with pytest.raises(LdmrtError, match=f"unknown {option}, did you mean '{value}.+'.*; found {value}"):
        Settings(3, 1, 1e-3, **{option: value})  # type: ignore[arg-type]
