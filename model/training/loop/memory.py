"""Predict the memory of a training from steps of one and two samples.

The bytes that are alive after an operation are a constant, such as of gradients, and a multiple of the samples that are
computed at once, such as of activations: steps of one and of two samples give both, for each operation. A larger step
has its peak where their sum is largest, which may be at another operation than in these two.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Generic

import torch
from torch import Tensor, nn

from ldmrt.model.training.data.buckets import BucketedImages
from ldmrt.model.training.data.captioned import Captioned, Grouped, Key, Sample

from .checkpointing import checkpoint_blocks
from .loss_scale import LossScale
from .optimizers import SMALL, bytes_in_8bit
from .processes import PIECE, Processes
from .recorder import Recorder
from .run import M, Run
from .task import TrainingTask

DRAWN = 100_000  # samples at most that are drawn to count the latents that will be kept
UNCHANGED = 100  # samples without new latents, beside as many as there are latents, after which there will be none
Lengths = Sequence[Sequence[int]]  # the living bytes after each operation, in the segments of a step


@dataclass(frozen=True)
class MemoryPlan:
    """States the memory of a training on its device, in bytes.

    Attributes:
        weights: Those that learn.
        frozen: The other weights, and buffers.
        gradients: Of the weights that learn.
        optimizer: What the optimizer remembers.
        averages: Of the weights.
        latents: Those that are kept in memory, once all have been computed.
        activations: What is kept for the gradient of the samples that are computed at once.
        samples: How many these are, with the regularisation images beside them.
        peak: The most in a step.
        saving: When networks are copied to be written, without previews.
        others: The peak of a step with other options, by these.
    """

    weights: int
    frozen: int
    gradients: int
    optimizer: int
    averages: int
    latents: int
    activations: int
    samples: int
    peak: int
    saving: int
    others: Mapping[str, int]


@dataclass(frozen=True)
class Repeated:
    """Streams the sample at one place of a stream again and again, so that steps of all sizes do the same."""

    data: Captioned
    index: int

    def draw(self, seed: int, index: int) -> Sample:
        """Return the sample."""
        return self.data.draw(seed, index)

    def caption(self, seed: int, index: int) -> str:
        """Return its caption."""
        return self.data.caption(seed, index)

    def indices(self, seed: int, step: int, batch: int) -> Sequence[int]:
        """Return its place, once for each sample of a batch: they draw the same random numbers too."""
        return [self.index] * batch

    def after(self, index: int) -> int:
        """Return the place after one whose image cannot be read."""
        return self.data.after(index) if isinstance(self.data, Grouped) else index + 1


def extrapolated(one: Lengths, two: Lengths, size: int) -> int:
    """Return the peak of a step of `size` samples at once.

    Args:
        one: The living bytes after each operation of a step of one sample at once.
        two: Those of two samples; where a segment has another number of operations, its peaks alone are compared.
        size: Samples at once.
    """
    most = 0
    for first, second in zip_longest(one, two, fillvalue=()):
        pairs = zip(first, second, strict=True)
        if len(first) != len(second):
            pairs = zip([max(first, default=0)], [max(second, default=0)], strict=True)
        most = max([most, *(a + (size - 1) * (b - a) for a, b in pairs)])
    return most


class Measurement(Generic[M]):
    """Takes small steps of a run, and predicts the memory of others from them. The run cannot be used afterwards."""

    def __init__(self, run: Run[M], task: TrainingTask, count: int) -> None:
        """Take the first step, in which the optimizer allocates what it remembers, and an image may be encoded.

        Args:
            run: The run, at its beginning.
            task: What it learns.
            count: Processes that share a batch, of which this is the first.
        """
        settings = run.settings
        places = task.data.largest(settings.batch) if isinstance(task.data, BucketedImages) else range(settings.batch)
        self.run, self.settings, self.batch = run, settings, len(places)
        self.task, self.processes = replace(task, data=Repeated(task.data, places[0])), Processes(0, count)
        self.networks = [one for one in (run.module, run.opponent, *task.networks) if one is not None]
        learning: list[nn.Module] = [run.module, *([run.opponent] if run.opponent is not None else [])]
        self.learning = [weight for one in learning for weight in one.parameters() if weight.requires_grad]
        self.checkpointing = settings.checkpointing
        self._steps = dict[tuple[str, bool, int, bool], Recorder]()
        self.encoding = max(self._step(settings.precision, 1, 1).segments[1], default=0)
        gradients = [weight.grad.nbytes for weight in self.learning if weight.grad is not None]
        self.gradients, self.largest = sum(gradients), max(gradients, default=0)

    def checkpoint(self) -> None:
        """Compute activations again from now on."""
        self.checkpointing = True
        for network in self.networks:
            checkpoint_blocks(network)

    def peak(self, accumulate: int, precision: str) -> int:
        """Return the most bytes that are alive in a step, beside those before it."""
        shares = self._shares(accumulate)
        one, two = self._recorded(precision, max(shares), several=len(shares) > 1)
        before = self.gradients if len(shares) > 1 else 0  # of the parts that have been computed
        exchanged = self.gradients + min(self.gradients, PIECE + self.largest) if self.processes.count > 1 else 0
        return max(extrapolated(one.segments, two.segments, max(shares)), before + self.encoding, exchanged)

    def activations(self) -> tuple[int, int]:
        """Return the bytes that are kept for the gradient with the run's own settings, and of how many samples."""
        shares = self._shares(self.settings.accumulate)
        one, two = self._recorded(self.settings.precision, max(shares), several=len(shares) > 1)
        return extrapolated([one.activations[-1:]], [two.activations[-1:]], max(shares)), max(shares)

    def _shares(self, accumulate: int) -> list[int]:
        """Return how many samples of each part of a batch this process computes; parts without any are left out."""
        parts = replace(self.settings, accumulate=accumulate).parts(self.batch)
        counts = [len(range(self.batch)[self.processes.share(part)]) for part in parts]
        return [count for count in counts if count]

    def _recorded(self, precision: str, most: int, *, several: bool) -> tuple[Recorder, Recorder]:
        """Return what was recorded of steps of one part of one and of two samples, or with `several` of a second part.

        Where no more than one sample is computed at once, no step is taken of two.
        """
        for size in (1, 2)[:most]:
            key = (precision, self.checkpointing, size, several)
            if key not in self._steps:
                self._steps[key] = self._step(precision, size + several, 1 + several)
        one, two = (self._steps[precision, self.checkpointing, min(size, most), several] for size in (1, 2))
        return one, two

    def _step(self, precision: str, batch: int, parts: int) -> Recorder:
        """Take a step, and return what was recorded of it."""
        run, recorder = self.run, Recorder(self.settings.device)
        run.settings = replace(self.settings, precision=precision, batch=batch, accumulate=parts)
        run.step = self.settings.steps - 1  # all parts of a loss take part in the last step
        run.loss_scale = run.loss_scale and LossScale(1.0)  # without an overflow, so that the step is taken
        for weight in self.learning:
            weight.grad = None
        with recorder:
            for _ in run.optimise(replace(self.task, loss_of=recorder.marking(self.task.loss_of))):
                pass
        return recorder


def plan_memory(run: Run[M], task: TrainingTask, count: int = 1) -> MemoryPlan:
    """Predict the memory of a run. It takes steps, so the run cannot be used afterwards; nothing is written.

    Args:
        run: The run, at its beginning.
        task: What it learns.
        count: Processes that share a batch; the plan is of the first, which keeps the averages.

    Returns:
        Bytes on the run's device.

    Raises:
        LdmrtError: A step of one or two samples has not enough memory, or is not finite.
    """
    settings = run.settings
    measured = Measurement(run, task, count)
    optimizers = [one for one in (run.optimizer, run.opposing) if one is not None]
    moments = [value for one in optimizers for state in one.state.values() for value in state.values()]
    every = [value for network in measured.networks for value in (*network.parameters(), *network.buffers())]
    learning = bytes_of(measured.learning, settings.device)
    known = {
        "weights": learning,
        "frozen": bytes_of([*every, *measured.learning], settings.device) - learning,
        "optimizer": bytes_of((value for value in moments if isinstance(value, Tensor)), settings.device),
        "averages": bytes_of(run.averages.tensors(), settings.device),
        "latents": _latents(task, settings.seed, settings.steps * settings.batch),
    }
    before = sum(known.values())
    activations, samples = measured.activations()
    peak = measured.peak(settings.accumulate, settings.precision)
    copied = bytes_of(run.module.state_dict().values(), settings.device)
    others = _others(measured)
    if settings.optimizer == "adamw" and any(weight.numel() >= SMALL for weight in measured.learning):
        others["--optimizer adamw8bit"] = peak + bytes_in_8bit(measured.learning) - known["optimizer"]
    return MemoryPlan(
        **known, gradients=measured.gradients, activations=activations, peak=before + peak,
        samples=samples * (2 if task.regularisation else 1),
        saving=before + measured.gradients + copied,
        others={options: before + most for options, most in others.items()},
    )  # fmt: skip


def _others(measured: Measurement[M]) -> dict[str, int]:
    """Return options that may take less memory, and the peak of a step with them beside what is there before.

    All of them together are listed where nothing else takes as little.
    """
    settings, found, every = measured.settings, dict[str, int](), list[str]()
    accumulate, precision = settings.accumulate, settings.precision
    while (accumulate := 2 * accumulate) <= settings.batch:
        found[f"--accumulate {accumulate}"] = measured.peak(accumulate, precision)
    if settings.accumulate < settings.batch:
        every.append(f"--accumulate {settings.batch}")
    if precision == "fp32" and (settings.device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)):
        precision = "bf16"
        every.append("--precision bf16")
        found["--precision bf16"] = measured.peak(settings.accumulate, precision)
    if not settings.checkpointing:
        measured.checkpoint()
        every.append("--checkpointing")
        found["--checkpointing"] = measured.peak(settings.accumulate, settings.precision)
    if len(every) > 1 and (least := measured.peak(settings.batch, precision)) < min(found.values()):
        found[" ".join(every)] = least
    return found


def bytes_of(tensors: Iterable[Tensor], device: str) -> int:
    """Return the bytes of those tensors that are on a device; a storage that several have counts once."""
    storages = (tensor.untyped_storage() for tensor in tensors if tensor.device.type == device)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _latents(task: TrainingTask, seed: int, samples: int) -> int:
    """Return the bytes of the latents that a task keeps in memory after so many samples, the first of which it has."""
    if task.cache is None or not task.cache.known:
        return 0
    keys, known = set[Key](), 0  # samples in a row that are known already
    for index in range(min(samples, DRAWN)):
        drawn = [task.data.draw(seed, index)]
        drawn += [task.regularisation.beside(drawn[0], seed, index)] if task.regularisation else []
        new = {sample.key for sample in drawn if not sample.once} - keys
        known = 0 if new else known + 1
        if known > len(keys) + UNCHANGED:
            break
        keys |= new
    return min(len(keys), task.cache.entries) * next(iter(task.cache.known.values())).nbytes
