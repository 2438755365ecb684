"""Training in fp16: the loss is scaled, and steps whose gradients are not finite are skipped, as in torch."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ldmrt.model.training.log import Log, read_log
from ldmrt.model.training.loop import loss_scale
from ldmrt.model.training.loop.loss_scale import MOST, LossScale
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings
from ldmrt.runtime import LdmrtError

from ..tiny_runs import minimising

SETTINGS = Settings(steps=12, batch=2, learning_rate=1e-2, warmup=0, schedule="constant", precision="fp16", ema=0.5)
FACTORS = [1e35, 1.0, 3e30, math.inf, 1.0, 1.0, 1.0, 1.0, 1e36, 2.0, 1e37, 1.0]  # of the gradient, by step


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def loss_of(run: Run, factors: list[float] = FACTORS) -> Tensor:
    out: Tensor = run.module(torch.ones(3)).float().sum()
    return out * factors[run.step]


def test_scale_and_skipped_steps_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """GradScaler's, of gradients in float32 that overflow where the scale is large."""
    monkeypatch.setattr(loss_scale, "GROWS", 3)
    run, theirs = Run(network(), SETTINGS), network().train()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
    taken = []
    for progress, factor in zip(minimising(lambda: loss_of(run), run), FACTORS, strict=True):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            out = theirs(torch.ones(3))
        # the sum of two samples over their number, as ours
        loss = torch.stack([out.float().sum() * factor] * 2).sum() / 2
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        assert progress.loss_scale is not None
        assert progress.loss_scale.scale == scaler.get_scale()
        assert progress.gradient == norm.item() or math.isnan(norm)
        taken.append(progress.taken)
        for ours, other in zip(run.module.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(ours, other)
    assert run.loss_scale is not None
    assert run.loss_scale.skipped == taken.count(False) > 2
    assert any(taken)


def test_a_skipped_step_changes_no_weight_and_no_average() -> None:
    run = Run(network(), SETTINGS)
    steps = minimising(lambda: loss_of(run, [0.25, math.inf, *[0.25] * 10]), run)
    next(steps)
    before = [value.clone() for value in (*run.module.parameters(), *run.average.values())]
    progress = next(steps)
    assert not progress.taken
    assert progress.step == run.step == 2
    assert progress.loss_scale == LossScale(2.0**15, 0, 1, 1)
    assert all(map(torch.equal, before, (*run.module.parameters(), *run.average.values())))
    assert next(steps).loss_scale == LossScale(2.0**15, 1, 1, 0)
    assert not torch.equal(before[0], next(run.module.parameters()))


def test_too_many_skipped_steps_stop_the_run() -> None:
    run = Run(network(), replace(SETTINGS, steps=40))
    taken = list[int]()
    with pytest.raises(LdmrtError, match=f"is not finite in fp16, as the {MOST - 1} before it") as caught:
        taken += (progress.step for progress in minimising(lambda: loss_of(run, [0.25] + [math.nan] * 40), run))
    assert run.step == MOST  # one that was taken, and all but the last of those that were not
    assert f"step {MOST} is" in str(caught.value)
    assert "first in the gradient of weight; samples 40, 41" in str(caught.value)
    assert caught.value.hint == "a lower --learning-rate, or --precision bf16"
    assert run.loss_scale is not None
    assert run.loss_scale.scale == 2.0 ** (16 - MOST + 1)


def test_other_precisions_stop_at_once() -> None:
    run = Run(network(), replace(SETTINGS, precision="bf16"))
    with pytest.raises(LdmrtError, match="step 2 is not finite; found"):
        list(minimising(lambda: loss_of(run, [1.0, 1.0, math.inf]), run))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("stop", [2, 4, 9])
def test_a_resumed_run_has_the_scale_of_the_saved_one(parts: int, stop: int, tmp_path: Path) -> None:
    settings = replace(SETTINGS, accumulate=parts)
    whole, first = Run(network(), settings), Run(network(), settings)
    scales = [progress.loss_scale for progress in minimising(lambda: loss_of(whole), whole)]
    halves = [progress.loss_scale for progress in itertools.islice(minimising(lambda: loss_of(first), first), stop)]
    first.save(tmp_path / "state")
    second = Run(nn.Linear(3, 2), settings)
    second.resume(tmp_path / "state")
    halves += [progress.loss_scale for progress in minimising(lambda: loss_of(second), second)]
    assert halves == scales
    assert len(set(scales)) > 3
    for one, other in ((whole.module.state_dict(), second.module.state_dict()), (whole.average, second.average)):
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    moments = (run.optimizer.state_dict()["state"] for run in (whole, second))
    for one, other in zip(*(each.values() for each in moments), strict=True):
        assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_log_counts_skipped_steps_and_leaves_their_losses_out(tmp_path: Path) -> None:
    run, log = Run(network(), SETTINGS), Log(tmp_path / "log.jsonl", 2, 0)
    losses = list[float]()
    for progress in minimising(lambda: loss_of(run, [math.nan, math.nan, 0.25, math.inf, *[0.25] * 8]), run):
        log.add(progress)
        losses += [progress.loss] * progress.taken
    lines = read_log(tmp_path / "log.jsonl")
    assert [line["step"] for line in lines] == [4, 6, 8, 10, 12]  # of the first two steps there is nothing to say
    assert [line["samples"] for line in lines] == [8, 12, 16, 20, 24]
    assert lines[0]["loss"] == pytest.approx(losses[0])  # a mean in float64
    assert lines[1]["loss"] == pytest.approx((losses[1] + losses[2]) / 2)
    assert [line["steps_skipped"] for line in lines] == [3] * 5
    assert lines[-1]["loss_scale"] == 2.0**13


def test_small_gradients_are_not_lost() -> None:
    """What the scale is for: in float16, whose smallest number is 6e-8, this gradient is 0 without it."""
    found = []
    for scale in (LossScale(1.0), LossScale()):
        run = Run(network(), SETTINGS)
        run.loss_scale = scale
        loss = lambda run=run: 1e-8 * run.module(torch.ones(3)).float().sum()  # noqa: E731
        found.append(next(minimising(loss, run)).gradient)  # type: ignore[arg-type]
    assert found[0] == 0
    assert found[1] == pytest.approx(1e-8 * math.sqrt(8), rel=1e-3)  # of 6 weights and 2 biases, in eleven bits
