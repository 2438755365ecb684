"""A training takes the same steps in one process and in several, which are connected by gloo here."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldmrt.model.checkpoint.load import load
from ldmrt.model.training.data.captioned import Pixels, Sample
from ldmrt.model.training.diffusion.timesteps import TIMESTEPS, Importance
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.loop.processes import ALONE, Processes, join
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.loop.task import Losses, Progress, TrainingTask
from ldmrt.model.training.tasks.finetune import Denoiser
from ldmrt.runtime import LdmrtError

from ..captioned import task_of
from ..first_stage.test_task import CASES, SETTINGS, prepared
from .several import in_processes

# Plain descent: AdamW would take the sign of gradients that are zero but for rounding.
FIVE = dataclasses.replace(SETTINGS, steps=5, batch=8, optimizer="sgd", learning_rate=0.05, warmup=0)
Begin = Callable[[Processes], tuple[Run, TrainingTask]]
Found = tuple[dict[str, Any], list[Progress]]


def train(begin: Begin, processes: Processes = ALONE, resumed: Path | None = None) -> Found:
    run, task = begin(processes)
    if resumed:
        run.resume(resumed)
    steps = list(run.optimise(task))
    return run.state(), steps


def assert_same(begin: Callable[[Processes, Settings], tuple[Run, TrainingTask]], count: int, folder: Path) -> None:
    """Several processes find the losses and weights of one.

    The first losses have the bits of one process that computes as many samples at once: of another number, float32
    kernels may sum in another order.
    """
    chosen = partial(begin, settings=FIVE)
    (alone, steps), each = train(chosen), in_processes(count, partial(train, chosen), folder)
    run, task = begin(ALONE, dataclasses.replace(FIVE, accumulate=count))
    first = next(run.optimise(task)).losses
    for state, others in each:
        for one, other in zip(steps, others, strict=True):
            assert one.noted.keys() == other.noted.keys()
            assert all(torch.equal(value, other.noted[name]) for name, value in one.noted.items())
            for name, value in one.losses.items():
                assert value.shape == other.losses[name].shape
                if one.step == 1:
                    torch.testing.assert_close(other.losses[name], value, rtol=1e-6, atol=0.0)
                    # the adaptive weight is of what is accumulated at once: of the whole batch here
                    assert name == "adversarial" or torch.equal(other.losses[name], first[name]), name
        for name, value in state["module"].items():
            assert torch.equal(value, each[0][0]["module"][name])  # all have the same bits
        for part in ("module", "opponent"):
            assert distance(alone.get(part, {}), state.get(part, {})) <= 1e-6  # gradients are summed in another order
    assert distance(alone["average"], each[0][0]["average"]) <= 1e-6


def distance(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    """The norm of all weights' errors, relative to that of the weights."""
    assert expected.keys() == found.keys()
    norms = [(value.double().norm(), (found[name].double() - value).norm()) for name, value in expected.items()]
    whole, error = (torch.tensor(each).norm().item() for each in zip(*norms, strict=True)) if norms else (1.0, 0.0)
    return error / whole


CHECKED = [("kl", 2), ("kl", 4), ("kl adversarial", 2), ("vq averaged", 2)]
OTHERS = [(case, count) for case in CASES for count in (2, 4) if (case, count) not in CHECKED]


@pytest.mark.parametrize(("case", "count"), [*CHECKED, *(pytest.param(*one, marks=pytest.mark.slow) for one in OTHERS)])
def test_an_autoencoder_takes_the_same_steps(case: str, count: int, tmp_path: Path) -> None:
    assert_same(lambda processes, settings: prepared(*CASES[case], 0, settings, processes), count, tmp_path)


@pytest.mark.slow(minutes=0.1)
@pytest.mark.parametrize(("count", "parts"), [(3, 1), (2, 3), (2, 8)])
def test_processes_with_unequal_shares_agree_on_the_adaptive_weight(count: int, parts: int, tmp_path: Path) -> None:
    """It is computed of each part of a batch, which may have no sample of a process."""

    def begin(processes: Processes) -> tuple[Run, TrainingTask]:
        settings = dataclasses.replace(FIVE, accumulate=parts)
        return prepared(*CASES["kl adversarial"], 0, settings, processes)

    (alone, steps), each = train(begin), in_processes(count, partial(train, begin), tmp_path)
    for state, others in each:
        for name, value in steps[-1].losses.items():  # five steps of sums in another order
            torch.testing.assert_close(others[-1].losses[name], value, rtol=1e-4, atol=1e-6)
        assert max(distance(alone[part], state[part]) for part in ("module", "opponent")) <= 1e-6


@pytest.mark.slow(minutes=0.11)
@pytest.mark.parametrize("count", [2, 4])
def test_a_checkpoint_takes_the_same_steps(count: int, folders: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = folders("sd15")

    def begin(processes: Processes, settings: Settings) -> tuple[Run, TrainingTask]:
        loaded = load(checkpoint)
        denoiser = Denoiser.of(loaded, train_text_encoders=True)
        return Run(denoiser, settings, processes=processes), task_of(loaded, denoiser)

    assert_same(begin, count, tmp_path)


class Groups:
    """Twelve pictures in batches of 4, 1 and 3, of which some are damaged."""

    def __init__(self, damaged: Sequence[int] = ()) -> None:
        self.damaged = damaged

    def draw(self, seed: int, index: int) -> Sample:
        def image() -> Pixels:
            if index in self.damaged:
                raise LdmrtError("data", f"picture {index} is damaged")
            return np.full((1, 1, 3), 20 * (index % 12), np.uint8)

        return Sample(image, "", (index,))

    def caption(self, seed: int, index: int) -> str:
        return ""

    def indices(self, seed: int, step: int, batch: int) -> range:
        first = 8 * (step // 3) + (0, 4, 5)[step % 3]
        return range(first, first + (4, 1, 3)[step % 3])

    def after(self, index: int) -> int:
        return index + 1


class Scale(nn.Module):
    """Two numbers: one learns in each step, the other from pictures of odd numbers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.odd = nn.Parameter(torch.ones((), dtype=torch.float64))


def scaled(
    processes: Processes, damaged: Sequence[int] = (), spoilt: int = -1, **changes: Any
) -> tuple[Run, TrainingTask]:
    module, memory = Scale(), Importance(3)

    def loss_of(samples: list[Sample], draws: Draws) -> Losses:
        t = draws.note(TIMESTEPS, memory.draw(draws))
        values = torch.tensor([sample.image.mean() / 255 for sample in samples], dtype=torch.float64)
        loss = (module.weight * values - draws.uniform("noise").double()).square() * memory.correction(t)
        odd = torch.tensor([sample.index % 2 for sample in samples], dtype=torch.float64)
        if odd.any():
            loss = loss + odd * (module.odd - values).square()
        return {"error": loss.where(torch.tensor([sample.index != spoilt for sample in samples]), torch.nan)}

    settings = Settings(12, 4, 0.1, warmup=1, **changes)
    task = TrainingTask(Groups(damaged), loss_of, timesteps=3, memory=memory)
    return Run(module, settings, processes=processes), task


@pytest.mark.parametrize("count", [2, 3])
def test_batches_that_are_smaller_than_the_processes(count: int, tmp_path: Path) -> None:
    """One without a sample takes part; a weight that none has a gradient of is left; the draws learn of all losses."""
    alone, steps = train(scaled)
    for state, others in in_processes(count, partial(train, scaled), tmp_path):
        for one, other in zip(steps, others, strict=True):
            assert other.losses["error"].shape == one.losses["error"].shape
            # float64: 12 steps of few roundings each
            torch.testing.assert_close(other.losses["error"], one.losses["error"], rtol=1e-12, atol=1e-15)
            assert torch.equal(other.noted[TIMESTEPS], one.noted[TIMESTEPS])
        assert torch.equal(state["memory"]["seen"], alone["memory"]["seen"])
        torch.testing.assert_close(state["memory"]["losses"], alone["memory"]["losses"], rtol=1e-12, atol=1e-15)
        for number, moments in alone["optimizer"]["state"].items():
            assert moments["step"] == state["optimizer"]["state"][number]["step"]
        assert distance(alone["module"], state["module"]) <= 1e-12


def test_a_step_in_fp16_is_skipped_by_all(tmp_path: Path) -> None:
    begin = partial(scaled, spoilt=6, precision="fp16")
    alone, _ = train(begin)
    assert alone["loss_scale"]["skipped"] == 1
    for state, _ in in_processes(2, partial(train, begin), tmp_path):
        assert state["loss_scale"] == alone["loss_scale"]
        assert distance(alone["module"], state["module"]) <= 1e-12


def test_unreadable_images_are_skipped_alike(tmp_path: Path) -> None:
    begin = partial(scaled, damaged=(2, 5, 6), skip_unreadable=True)

    def found(processes: Processes) -> tuple[dict[str, Any], set[Any]]:
        run, task = begin(processes)
        list(run.optimise(task))
        return run.state(), {*run.skipped}

    alone, skipped = found(ALONE)
    assert skipped == {(2,), (5,), (6,)}
    for state, others in in_processes(2, found, tmp_path):
        assert others == skipped
        assert distance(alone["module"], state["module"]) <= 1e-12


@pytest.mark.parametrize(
    ("begin", "message"),
    [
        (partial(scaled, damaged=(3,)), "picture 3 is damaged"),
        (partial(scaled, spoilt=6), "step 2 is not finite; .*; samples 5, 6, 7; timesteps"),
    ],
)
def test_the_error_of_one_process_is_raised_in_all(begin: Begin, message: str, tmp_path: Path) -> None:
    for error in in_processes(2, partial(train, begin), tmp_path):
        assert type(error) is LdmrtError
        with pytest.raises(LdmrtError, match=message):
            raise error


def test_a_fault_of_one_process_is_shown_by_the_others(tmp_path: Path) -> None:
    def fails(processes: Processes) -> list[int]:
        if processes.rank == 1:
            raise ZeroDivisionError("of process 1")
        return processes.exchange(processes.rank)

    first, second = in_processes(2, fails, tmp_path)
    assert type(second) is ZeroDivisionError
    assert type(first) is RuntimeError
    assert "in process 1:" in str(first)
    assert "ZeroDivisionError: of process 1" in str(first)


@pytest.mark.parametrize(
    "operation",
    [
        lambda processes: processes.exchange(None), lambda processes: processes.once(lambda: 1),
        lambda processes: processes.add_up([torch.ones(9)]),
    ],
)  # fmt: skip
def test_a_process_that_is_gone_ends_the_others(operation: Callable[[Processes], object], tmp_path: Path) -> None:
    def leaves(processes: Processes) -> None:
        if processes.rank == 1:
            (tmp_path / "1").write_bytes(b"N.")  # a pickled None
            os._exit(1)
        operation(processes)

    first, _, third = in_processes(3, leaves, tmp_path)
    for error in (first, third):
        assert type(error) is LdmrtError
        assert error.problem == "another process of this training has ended"


@pytest.mark.slow(minutes=0.19)
@pytest.mark.parametrize(("before", "after"), [(2, 2), (3, 3), (2, 1), (1, 3)])
def test_a_resumed_run_goes_on_with_any_number_of_processes(before: int, after: int, tmp_path: Path) -> None:
    """With the same number to the bit, also with AdamW."""
    settings = SETTINGS if before == after else dataclasses.replace(FIVE, steps=6, batch=4)

    def several(count: int, work: Callable[[Processes], Found]) -> Found:
        return in_processes(count, work, tmp_path)[0] if count > 1 else work(ALONE)

    def begin(processes: Processes) -> tuple[Run, TrainingTask]:
        return prepared(*CASES["vq adversarial"], 0, settings, processes)

    def half(processes: Processes) -> None:
        run, task = begin(processes)
        for _ in itertools.islice(run.optimise(task), 3):
            pass
        if processes.first:
            run.save(tmp_path / "state")
        processes.exchange(None)

    whole, steps = several(before, partial(train, begin))
    several(before, half)  # type: ignore[arg-type]
    rest, others = several(after, partial(train, begin, resumed=tmp_path / "state"))
    losses = [[progress.loss for progress in each] for each in (steps[3:], others)]
    if before == after:
        assert losses[0] == losses[1]
        for part in ("module", "average", "opponent"):
            assert all(torch.equal(value, rest[part][name]) for name, value in whole[part].items())
    else:
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        for part in ("module", "average", "opponent"):  # gradients are summed in another order
            assert distance(whole[part], rest[part]) <= 1e-6
    assert rest.keys() == whole.keys()
    assert rest["about"] == whole["about"]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_each_sample_is_of_one_process(count: int, batch: int) -> None:
    for accumulate in range(1, batch + 1):
        for part in Settings(1, batch, 1.0, accumulate=accumulate).parts(batch):
            shares = []
            for rank in range(count):
                own = list(range(batch))[rank::count]
                shares += own[Processes(rank, count).share(part)]
                assert all(place % count == rank for place in own)
            assert sorted(shares) == list(range(batch))[part]


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_sharded_models_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(LdmrtError, match="is not supported; expected a whole model in each process"):
        join("cpu")


def test_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(LdmrtError, match="3 processes on 2 GPUs; expected one GPU for each process"):
        join("cuda")
