"""The memory of a training, predicted from small steps, beside what is measured of large ones."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldmrt.model.training.data.buckets import BucketedImages
from ldmrt.model.training.data.captioned import ImageFolder, Sample
from ldmrt.model.training.data.metadata import Row
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.loop.memory import MemoryPlan, Repeated, bytes_of, extrapolated, plan_memory
from ldmrt.model.training.loop.processes import PIECE
from ldmrt.model.training.loop.recorder import Recorder
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.loop.task import Losses, TrainingTask

from .measured import peak_of

WIDTH = 32  # of the network, in numbers
SIDE = 4  # pixels


class Images:
    """Squares that differ."""

    def draw(self, seed: int, index: int) -> Sample:
        return Sample(np.full((SIDE, SIDE, 3), index, np.uint8), "a caption", (index,))

    def caption(self, seed: int, index: int) -> str:
        return "a caption"


def network() -> nn.Sequential:
    return nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(WIDTH, WIDTH), nn.SiLU())))


def task_of(module: nn.Module, frozen: nn.Module | None = None) -> TrainingTask:
    def loss_of(samples: list[Sample], draws: Draws) -> Losses:
        x = draws.normal("x", (64, WIDTH))
        with torch.no_grad():
            x = x if frozen is None else frozen(x)
        return {"loss": module(x).square().mean(dim=(1, 2))}

    return TrainingTask(Images(), loss_of, networks=() if frozen is None else (frozen,))


def test_recorder_counts_what_is_alive() -> None:
    before = torch.ones(1000)
    with Recorder("cpu") as recorder:
        x = before + 1
        y = x * 2
        x.mul_(3)
        view = y[:10]  # no memory of its own
        del x, y
        z = before + 1
        del view
        z = z - 1
    assert recorder.segments == [[4000, 8000, 8000, 8000, 8000, 8000]]  # `y` lives as long as its view
    assert recorder.alive == 4000
    del z
    assert recorder.alive == 0


def test_recorder_counts_what_the_gradient_keeps() -> None:
    """As PyTorch's own hooks for saved tensors count it, but for the loss itself."""
    module, saved = network(), dict[int, int]()
    task, draws, samples = task_of(module), Draws(0, range(3)), [Images().draw(0, i) for i in range(3)]

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with Recorder("cpu") as recorder:
        losses = recorder.marking(task.loss_of)(samples, draws)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = task.loss_of(samples, draws)
    for weight in module.parameters():
        saved.pop(weight.untyped_storage().data_ptr(), None)
    first = 3 * 64 * WIDTH * 4  # the input, which is of NumPy, and which the hooks count
    assert recorder.activations == [sum(saved.values()) - first + losses["loss"].nbytes]
    assert len(kept) == 1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_recorder_has_the_peak_of_the_profiler(checkpointing: bool) -> None:
    """On a network whose kernels allocate nothing for themselves: equal, but for numbers of a few bytes."""
    from torch.utils.checkpoint import checkpoint

    module, x = network(), torch.randn(256, WIDTH)

    def step() -> None:
        out = x
        for layer in module:
            # without PyTorch's random state, of which a block keeps 5 kB that no operation makes
            options = {"use_reentrant": False, "preserve_rng_state": False}
            out = checkpoint(layer, out, **options) if checkpointing else layer(out)
        out.square().mean().backward()

    step()
    module.zero_grad()
    expected, _ = peak_of(step)
    module.zero_grad()
    with Recorder("cpu") as recorder:
        step()
    assert max(recorder.segments[0]) == pytest.approx(expected, abs=64)


@pytest.mark.parametrize("mask", [(True, True, True), (True, False, False), (False, True, True)])
@pytest.mark.parametrize("layouts", ["last, last", "last, plain", "plain, last", "plain, plain"])
@pytest.mark.parametrize("shape", [(6, 64, 128, 32, 4, 2), (2, 256, 256, 16, 3, 1), (16, 64, 64, 16, 3, 1)])
def test_recorder_counts_the_copies_of_a_convolution(
    shape: tuple[int, ...], layouts: str, mask: tuple[bool, ...]
) -> None:
    batch, before, after, side, kernel, stride = shape
    formats = [torch.channels_last if layout == "last" else torch.contiguous_format for layout in layouts.split(", ")]
    x = torch.randn(batch, before, side, side).contiguous(memory_format=formats[0])
    weight = torch.randn(after, before, kernel, kernel).contiguous(memory_format=formats[1])
    y = nn.functional.conv2d(x, weight, None, stride, 1)
    gradient = torch.randn_like(y)

    def act() -> tuple[Tensor, ...]:
        settings = [after], [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, mask
        return torch.ops.aten.convolution_backward(gradient, x, weight, *settings)  # type: ignore[no-any-return]

    act()
    expected, _ = peak_of(act)
    with Recorder("cpu") as recorder:
        act()
    [[found]] = recorder.segments
    # 700 kB: what a thread computes with, of any size of tensors; up to half more where nothing is channels_last, as
    # the layout of oneDNN depends on the shapes then
    assert expected - 700_000 <= found <= (1.5 if layouts == "plain, plain" else 1.0) * expected


def test_a_peak_may_be_elsewhere_than_in_small_steps() -> None:
    one, two = [[10, 100, 30], [7]], [[20, 101, 58], [7]]
    assert extrapolated(one, two, 1) == 100
    assert extrapolated(one, two, 2) == 101
    assert extrapolated(one, two, 5) == 30 + 4 * 28  # the third operation, which is no peak of either step
    assert extrapolated(one, two, 100) == 30 + 99 * 28
    assert extrapolated([[5, 9], [2]], [[5, 9, 10], [3]], 11) == 9 + 10  # the segments' peaks, where one is longer


def largest_of(run: Run[Any], task: TrainingTask) -> int:
    """The peak of a whole step of a run, after a first one, without gradients of that one."""
    steps = run.optimise(task)
    next(steps)
    for weight in run.module.parameters():
        weight.grad = None
    with Recorder("cpu") as recorder:
        next(steps)
    return max(max(segment, default=0) for segment in recorder.segments)


@pytest.mark.parametrize("accumulate_in", [1, 2, 7])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lion"])
def test_a_plan_is_what_a_large_step_takes(accumulate_in: int, optimizer: str) -> None:
    """To the byte, as every kernel of this network allocates in proportion to the samples."""
    settings = Settings(
        steps=3, batch=7, learning_rate=1e-3, warmup=0, ema=(0.9, 0.99), accumulate=accumulate_in, optimizer=optimizer
    )
    module, frozen = network(), nn.Linear(WIDTH, WIDTH)
    plan = plan_memory(Run(module, settings), task_of(module, frozen))
    size = bytes_of(module.parameters(), "cpu")
    assert (plan.weights, plan.gradients, plan.averages) == (size, size, 2 * size)
    assert plan.frozen == WIDTH * (WIDTH + 1) * 4
    steps = 4 * 12 if optimizer == "adamw" else 0  # AdamW counts its steps for each weight
    assert plan.optimizer == {"adamw": 2, "sgd": 1, "lion": 1}[optimizer] * size + steps
    assert plan.samples == -(-7 // accumulate_in)
    module = network()
    known = plan.weights + plan.frozen + plan.averages + plan.optimizer
    # 64: the numbers of a loss are in the parts of a batch, whose tensors are joined
    assert plan.peak - known == pytest.approx(largest_of(Run(module, settings), task_of(module, frozen)), abs=64)


def test_other_options_are_what_runs_with_them_take() -> None:
    settings = Settings(steps=3, batch=6, learning_rate=1e-3, warmup=0)

    def planned(**options: Any) -> MemoryPlan:
        module = network()
        asked = {**vars(settings), **options}
        return plan_memory(Run(module, Settings(**asked)), task_of(module))

    plan = planned()
    assert list(plan.others) == [
        "--accumulate 2", "--accumulate 4", "--precision bf16", "--checkpointing",
        "--accumulate 6 --precision bf16 --checkpointing",
    ]  # fmt: skip
    assert plan.others["--accumulate 2"] == planned(accumulate=2).peak < plan.peak
    assert plan.others["--accumulate 4"] == planned(accumulate=4).peak
    assert plan.others["--precision bf16"] == planned(precision="bf16").peak
    assert plan.others["--checkpointing"] == planned(checkpointing=True).peak == plan.peak  # it has no such blocks
    assert planned(accumulate=6, precision="bf16", checkpointing=True).others == {}
    assert list(planned(batch=1, precision="bf16").others) == ["--checkpointing"]


def test_moments_in_8_bits_are_what_a_run_with_them_has() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra bitsandbytes)")
    settings = Settings(steps=3, batch=2, learning_rate=1e-3, warmup=0)
    plans = []
    for optimizer in ("adamw", "adamw8bit"):
        module = nn.Linear(2 * WIDTH, 2 * WIDTH)
        task = TrainingTask(Images(), lambda samples, draws: {"loss": module(draws.normal("x", (64,))).mean(dim=1)})  # noqa: B023
        plans.append(plan_memory(Run(module, dataclasses.replace(settings, optimizer=optimizer)), task))
    usual, eight = plans
    assert eight.optimizer < usual.optimizer / 3
    tables = 2 * 256 * 4  # of the levels of all weights
    # what an update computes with is no part of the estimate: here it is as large as the rest, as there is one weight
    assert usual.others["--optimizer adamw8bit"] - usual.peak == eight.optimizer - tables - usual.optimizer
    assert "--optimizer adamw8bit" not in eight.others


def test_a_plan_of_several_processes_is_of_the_first() -> None:
    settings = Settings(steps=3, batch=7, learning_rate=1e-3, warmup=0)
    found = {}
    for count in (1, 2, 7, 8):
        module = network()
        found[count] = plan_memory(Run(module, settings), task_of(module), count)
    assert {count: plan.samples for count, plan in found.items()} == {1: 7, 2: 4, 7: 1, 8: 1}
    assert found[2].activations < found[1].activations
    size = found[8].gradients
    assert size < PIECE  # so that it is added up in one piece, as large as the gradients
    assert found[8].peak >= found[8].weights + found[8].averages + found[8].optimizer + 2 * size


@pytest.mark.parametrize("parts", [1, 2])
def test_an_image_is_encoded_beside_the_gradients_of_earlier_parts(parts: int) -> None:
    module, size = network(), 10_000_000
    settings = Settings(steps=3, batch=4, learning_rate=1e-3, accumulate=parts)
    task, encoded = task_of(module), list[bool]()

    def loss_of(samples: list[Sample], draws: Draws) -> Losses:
        if not encoded:  # once, as latents are kept
            torch.ones(size // 4) + 1  # twice the size, for a moment
            encoded.append(True)
        return task.loss_of(samples, draws)

    plan = plan_memory(Run(module, settings), TrainingTask(task.data, loss_of))
    known = plan.weights + plan.averages + plan.optimizer
    assert plan.peak == known + 2 * size + (plan.gradients if parts > 1 else 0)


def test_steps_of_small_batches_draw_the_same_sample() -> None:
    repeated = Repeated(Images(), 5)  # type: ignore[arg-type]
    assert list(repeated.indices(0, 3, 4)) == [5] * 4
    assert repeated.draw(0, 5).key == (5,)
    assert repeated.after(5) == 6


def test_the_largest_batch_has_the_most_pixels() -> None:
    """Not the largest images: there may be few of them."""
    shapes = {"a": (8, 8), "b": (8, 8), "c": (8, 8), "d": (4, 18)}
    images = ImageFolder(Path(), tuple(Row(i, name, name) for i, name in enumerate(shapes)), 8, shapes=shapes)
    data = BucketedImages.of(images, ((4, 18), (8, 8)))
    chosen = {batch: [data.draw(0, index).key[0] for index in data.largest(batch)] for batch in (1, 2, 5)}
    assert chosen[1] == ["d"]
    assert len(chosen[2]) == 2
    assert sorted(chosen[5]) == ["a", "b", "c"]
