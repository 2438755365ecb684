"""Learning rates beside diffusers' schedules, and Lion beside its paper."""

import copy
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import diffusers.optimization
import pytest
import torch
from torch import Tensor, nn

from ldmrt.model.training.loop.optimizers import OPTIMIZERS, POWER, SCHEDULES, Lion, bytes_in_8bit, learning_rate
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


def settings_of(name: str, rate: float) -> Settings:
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra bitsandbytes)")
    return Settings(6, 2, rate, warmup=0, optimizer=name, schedule="constant")


def wide() -> nn.Module:
    """A convolution in whose layout the order of weights shows, and whose moments have several scales."""
    return nn.Conv2d(24, 24, 3, padding=1)


@pytest.mark.parametrize(
    ("name", "made"), [*((name, lambda: nn.Linear(3, 3)) for name in OPTIMIZERS), ("adamw8bit", wide)]
)
def test_each_learns_and_resumes_to_the_bit(name: str, made: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings, first = settings_of(name, 1e-3 if made is wide else 0.05), made()

    def loss(run: Run) -> Tensor:
        images = torch.linspace(-1, 1, 24)[:, None, None].expand(1, 24, 4, 4)
        return (run.module(images if made is wide else torch.ones(3)) - 2).square().mean()

    whole = Run(copy.deepcopy(first), settings)
    losses = [progress.loss for progress in minimising(lambda: loss(whole), whole)]
    assert losses[-1] < losses[0]
    half = Run(copy.deepcopy(first), settings)
    list(itertools.islice(minimising(lambda: loss(half), half), 3))
    half.save(tmp_path / "state")
    again = Run(made(), settings)
    again.resume(tmp_path / "state")
    list(minimising(lambda: loss(again), again))
    assert all(torch.equal(value, again.module.state_dict()[key]) for key, value in whole.module.state_dict().items())
    assert whole.bytes() == again.bytes() > 0


def test_moments_in_8_bits() -> None:
    """One byte each, but those of small weights; and steps close to those of AdamW."""
    torch.manual_seed(0)
    first = nn.Sequential(wide(), nn.GroupNorm(4, 24))
    x, moved, runs = torch.randn(2, 24, 4, 4), [], []
    for name in ("adamw", "adamw8bit"):
        run = Run(copy.deepcopy(first), settings_of(name, 1e-3))
        list(minimising(lambda run=run: run.module(x).tanh().square().mean(), run))  # type: ignore[misc]
        runs.append(run)
        pairs = zip(first.parameters(), run.module.parameters(), strict=True)
        moved.append([after.detach() - before.detach() for before, after in pairs])
    for exact, found in zip(*moved, strict=True):
        # a moment in 8 bits is rounded by up to 1/32 of it, or more where it is small beside others of its block
        assert (found - exact).norm() < 0.1 * exact.norm()
    state = runs[1].optimizer.state_dict()["state"]
    assert [values["state1"].dtype for values in state.values()] == [torch.uint8] + [torch.float32] * 3
    tensors = [value for values in state.values() for value in values.values() if isinstance(value, Tensor)]
    assert sum(value.nbytes for value in tensors) == bytes_in_8bit(first.parameters())


def test_moments_in_8_bits_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(LdmrtError, match=r"(?s)bitsandbytes is not installed.*'ldmrt\[bitsandbytes\]'"):
        Run(nn.Linear(3, 3), Settings(1, 1, 0.1, optimizer="adamw8bit"))


def test_steps_of_a_constant_schedule_are_free() -> None:
    assert "steps" not in Settings(3, 1, 1e-3, schedule="constant").shaping()
    assert "steps" in Settings(3, 1, 1e-3).shaping()


@pytest.mark.parametrize(("option", "value"), [("schedule", "cosin"), ("optimizer", "adam")])
def test_unknown_choices_are_refused(option: str, value: str) -> None:
    with pytest.raises(LdmrtError, match=f"unknown {option}, did you mean '{value}.+'.*; found {value}"):
        Settings(3, 1, 1e-3, **{option: value})  # type: ignore[arg-type]
