"""Hold the settings of a training: steps, batches, learning rate, and what the arithmetic is done in."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from ldmrt.runtime.errors import LdmrtError, first_line

from .optimizers import OPTIMIZERS, SCHEDULES, check_choice, learning_rate

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """Holds how to train. `precision` is that of the network's arithmetic; weights and their averages stay float32."""

    steps: int
    batch: int  # samples a step
    learning_rate: float  # at the end of the warm-up
    warmup: int = 200  # steps
    schedule: str = "cosine"  # of the learning rate after the warm-up
    optimizer: str = "adamw"
    ema: float | tuple[float, ...] = 0.999  # decay of the weights' average, or several; the first is written
    ema_on_cpu: bool = False  # averages are kept in the CPU's memory
    clip: float = 1.0  # the largest norm of a step's gradient
    seed: int = 0
    device: str = "cpu"
    precision: str = "fp32"
    accumulate: int = 1  # parts of a batch, whose gradients are added up: less memory, the same step
    checkpointing: bool = False  # activations are computed again for the gradient: less memory, the same step
    compile: bool = False  # networks are compiled: a faster step, with other roundings
    skip_unreadable: bool = False  # unreadable images are skipped; otherwise they stop the run

    def shaping(self) -> dict[str, object]:
        """Return the settings that weights depend on."""
        free = {"skip_unreadable", "checkpointing", "ema_on_cpu"} | (
            {"steps"} if self.schedule == "constant" else set()
        )
        decays = {"ema": tuple(sorted(self.ema))} if isinstance(self.ema, tuple) else {}  # in any order
        return {name: value for name, value in (asdict(self) | decays).items() if name not in free}

    @property
    def decays(self) -> tuple[float, ...]:
        """The decays of the weights' averages."""
        return self.ema if isinstance(self.ema, tuple) else (self.ema,)

    def __post_init__(self) -> None:
        """Refuse unknown choices, and more parts of a batch than it has samples."""
        if self.precision not in PRECISIONS:
            expected = ", ".join(PRECISIONS)
            raise LdmrtError("train", "unsupported precision", expected=expected, found=self.precision)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        if not 1 <= self.accumulate <= self.batch:
            expected = f"1 to {self.batch}, the samples of a batch"
            raise LdmrtError("train", "invalid --accumulate", expected=expected, found=self.accumulate)

    def rate(self, step: int) -> float:
        """Return the learning rate of the step after `step` steps."""
        return learning_rate(self.schedule, self.learning_rate, step, self.steps, self.warmup)

    def parts(self, count: int) -> list[slice]:
        """Return which of a batch's samples are computed together, in `accumulate` parts that are nearly of one size.

        A batch of a smaller `count` than that has as many parts.
        """
        parts = min(self.accumulate, count)
        ends = [count * i // parts for i in range(parts + 1)]
        return [slice(*ends[i : i + 2]) for i in range(parts)]

    def autocast(self) -> torch.autocast:
        """Compute networks in the precision of the run within this context."""
        kind = PRECISIONS[self.precision]
        return torch.autocast(self.device, kind or torch.bfloat16, enabled=kind is not None)

    @property
    def at_once(self) -> int:
        """The samples of the largest part."""
        return -(-self.batch // self.accumulate)

    @property
    def smaller(self) -> str:
        """The options that take less memory, for a message."""
        half = f"--accumulate {2 * self.accumulate}" if 2 * self.accumulate <= self.batch else "a smaller --size"
        others = ["--checkpointing"] * (not self.checkpointing) + ["--precision bf16"] * (self.precision == "fp32")
        return " or ".join([", ".join([half, *others[:-1]]), *others[-1:]])


@contextlib.contextmanager
def naming_memory(settings: Settings) -> Iterator[None]:
    """Turn the errors of a device, or a machine, without enough memory into an `LdmrtError`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "DefaultCPUAllocator" not in str(error):
            raise
        problem = f"out of memory on {settings.device} with {settings.at_once} samples at once"
        raise LdmrtError("train", problem, found=first_line(error), hint=settings.smaller) from None
