"""A run that was stopped and resumed, beside one that ran through."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.task import Progress

Begin = Callable[[], tuple[Run, Iterator[Progress]]]


def assert_resumes(begin: Begin, state: Path, after: int = 3) -> None:
    """A run saved and resumed has the losses, weights, average and optimizer of one that ran through."""
    whole, steps = begin()
    losses = [progress.loss for progress in steps]
    first, steps = begin()
    halves = [progress.loss for progress in itertools.islice(steps, after)]
    first.save(state)
    second, steps = begin()
    second.resume(state)
    halves += [progress.loss for progress in steps]
    assert halves == losses
    for one, other in ((whole.module.state_dict(), second.module.state_dict()), (whole.average, second.average)):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    moments, others = whole.optimizer.state_dict()["state"], second.optimizer.state_dict()["state"]
    assert moments.keys() == others.keys()
    assert all(torch.equal(value, others[i][name]) for i, each in moments.items() for name, value in each.items())
