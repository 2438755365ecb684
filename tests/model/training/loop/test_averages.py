"""Averages of weights: each equals a slow twin, whatever the others are, and a resumed run has them to the bit."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ldmrt.model.training.loop.averages import Averages
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.states.files import read_state, write_state
from ldmrt.model.training.loop.task import Progress
from ldmrt.runtime import LdmrtError

from ..tiny_runs import SETTINGS, minimising

SEVERAL = replace(SETTINGS, steps=12, ema=(0.5, 0.9, 0.0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))  # has a buffer that is an integer


def train(run: Run) -> Iterator[Progress]:
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    return minimising(lambda: run.module(inputs).pow(4).mean() + run.module[0].weight.sum(), run)


@pytest.mark.parametrize("on_cpu", [False, True])
def test_each_average_equals_a_slow_twin(on_cpu: bool) -> None:
    run = Run(network(), replace(SEVERAL, ema_on_cpu=on_cpu))
    twins = {decay: {name: value.clone() for name, value in run.weights().items()} for decay in (0.5, 0.9, 0.0)}
    for taken, _ in enumerate(train(run), 1):
        for limit, twin in twins.items():
            decay = min(limit, (1 + taken) / (10 + taken))
            for name, value in run.weights().items():
                twin[name] = twin[name].lerp(value, 1.0 - decay) if value.is_floating_point() else value.clone()
    assert list(run.averages.each) == [0.5, 0.9, 0.0]
    for decay, twin in twins.items():
        assert all(torch.equal(value, twin[name]) for name, value in run.averages.each[decay].items())
    assert run.average is run.averages.each[0.5]
    assert torch.equal(run.averages.each[0.0]["0.weight"], run.module[0].weight)
    assert not torch.equal(twins[0.5]["0.weight"], twins[0.9]["0.weight"])


def test_an_average_does_not_depend_on_the_others() -> None:
    alone, several = Run(network(), replace(SEVERAL, ema=0.9)), Run(network(), SEVERAL)
    for run in (alone, several):
        list(train(run))
    assert all(torch.equal(value, several.averages.each[0.9][name]) for name, value in alone.average.items())
    assert "averages" not in alone.state()


def test_a_resumed_run_has_all_averages_in_any_order(tmp_path: Path) -> None:
    whole, first = Run(network(), SEVERAL), Run(network(), SEVERAL)
    list(train(whole))
    list(itertools.islice(train(first), 7))
    first.save(tmp_path / "state")
    second = Run(network(), replace(SEVERAL, ema=(0.9, 0.0, 0.5)))
    second.resume(tmp_path / "state")
    list(train(second))
    assert list(second.averages.each) == [0.9, 0.0, 0.5]
    for decay, average in whole.averages.each.items():
        assert all(torch.equal(value, second.averages.each[decay][name]) for name, value in average.items())
    assert all(torch.equal(value, second.averaged().state_dict()[name]) for name, value in second.average.items())


def test_other_decays_are_refused_and_so_is_a_state_without_them(tmp_path: Path) -> None:
    run = Run(network(), replace(SEVERAL, ema=0.5))
    next(train(run))
    run.save(tmp_path / "state")
    with pytest.raises(LdmrtError, match=r"another ema; expected 0\.5; found \(0\.5, 0\.9\)"):
        Run(network(), replace(SEVERAL, ema=(0.9, 0.5))).resume(tmp_path / "state")
    state = read_state(tmp_path / "state")
    write_state(tmp_path / "state", state | {"about": {}})  # of a version that had no settings in it
    Run(network(), replace(SEVERAL, ema=0.5)).resume(tmp_path / "state")
    with pytest.raises(LdmrtError, match=r"cannot resume .*; found 0\.5"):
        Run(network(), replace(SEVERAL, ema=(0.9, 0.5))).resume(tmp_path / "state")


def test_each_average_is_finite(tmp_path: Path) -> None:
    run = Run(network(), SEVERAL)
    next(train(run))
    run.averages.each[0.9]["0.bias"][1] = torch.nan
    with pytest.raises(LdmrtError, match=r"0\.bias in step 1 is not finite"):
        run.save(tmp_path / "state")
    write_state(tmp_path / "state", run.state())
    with pytest.raises(LdmrtError, match=r"0\.bias in .* is not finite"):
        Run(network(), SEVERAL).resume(tmp_path / "state")


def test_averages_are_no_views_of_the_weights() -> None:
    weights = {"value": torch.ones(2)}
    averages = Averages(weights, (0.5, 0.9))
    weights["value"].zero_()
    assert all(torch.equal(value, torch.ones(2)) for value in averages.tensors())
