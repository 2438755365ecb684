"""Run a training as a generator: each step yields its progress, and the caller decides when to stop, save or look.

Every random number depends on (seed, step) alone, so a resumed run takes the very steps that it would have taken.
"""

import contextlib
import copy
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.writing import write_atomically

from .data import Key
from .metadata import LISTED
from .resuming import Values, changes

M = TypeVar("M", bound=nn.Module)
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Settings:
    """Holds how to train. `precision` is that of the network's arithmetic; weights and their averages stay float32."""

    steps: int
    batch: int  # samples a step
    learning_rate: float  # at the end of the warm-up
    warmup: int = 200  # steps
    ema: float = 0.999  # decay of the weights' average
    clip: float = 1.0  # the largest norm of a step's gradient
    seed: int = 0
    device: str = "cpu"
    precision: str = "fp32"
    skip_unreadable: bool = False  # unreadable images are skipped; otherwise they stop the run

    def shaping(self) -> dict[str, object]:
        """Return the settings that weights depend on."""
        return {name: value for name, value in asdict(self).items() if name != "skip_unreadable"}

    def __post_init__(self) -> None:
        """Refuse a precision that is not one of `PRECISIONS`."""
        if self.precision not in PRECISIONS:
            expected = ", ".join(PRECISIONS)
            raise LdmrtError("train", "unsupported precision", expected=expected, found=self.precision)


@dataclass(frozen=True)
class Progress:
    """Reports one finished step: `step` of `steps`, its loss, and images a second since the loop began."""

    step: int
    steps: int
    loss: float
    rate: float


@contextlib.contextmanager
def naming_memory(settings: Settings) -> Iterator[None]:
    """Turn the errors of a device, or a machine, without enough memory into an `LdmrtError`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "DefaultCPUAllocator" not in str(error):
            raise
        half = f"--batch {settings.batch // 2}" if settings.batch > 1 else "a smaller --size"
        hint = half if settings.precision == "bf16" else f"{half}, or --precision bf16"
        problem = f"out of memory on {settings.device} with batches of {settings.batch}"
        raise LdmrtError("train", problem, found=first_line(error), hint=hint) from None


def listed(values: Iterable[object]) -> str:
    """Name values, the first of them where there are many."""
    names = [str(value) for value in values]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def learning_rate(settings: Settings, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, times half a cosine to zero (Loshchilov & Hutter 2017)."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup))
    return settings.learning_rate * warm * 0.5 * (1.0 + math.cos(math.pi * step / settings.steps))


class Run(Generic[M]):
    """Holds a module in training: its weights, their moving average, the optimiser, and the number of steps taken."""

    def __init__(self, module: M, settings: Settings, about: Mapping[str, object] | None = None) -> None:
        """Move a module to the device and begin at step 0.

        Args:
            module: The network, with its first weights.
            settings: How to train it.
            about: What a resumed run must have in common with the saved one, beside its settings: data, task.
        """
        self.about = dict(about or {})
        self.settings = settings
        self.changes: list[dict[str, object]] = []  # of settings, when the run was resumed: step, name, before and now
        self.module = module.to(settings.device).train()
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        self.step = 0
        self.inputs: Callable[[], dict[str, Iterable[object]]] = dict  # of the present step, to name in errors
        self.skipped: Mapping[Key, str] = {}  # samples whose images could not be read, and why
        self.torn = False  # weights that an interrupted update has changed in part are not to be saved

    def generator(self) -> torch.Generator:
        """Return the random numbers of the present step."""
        return torch.Generator(self.settings.device).manual_seed(self.settings.seed * 1_000_003 + self.step)

    def optimise(self, loss_of: Callable[[torch.Generator], Tensor]) -> Iterator[Progress]:
        """Minimise a loss by AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101).

        Args:
            loss_of: Computes the loss of the present step, a scalar, from its random numbers.

        Yields:
            The progress of each step, until `settings.steps` are taken.

        Raises:
            LdmrtError: A loss or gradient is not finite, or memory runs out.
        """
        settings, begin, first = self.settings, time.perf_counter(), self.step
        while self.step < settings.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(settings, self.step)
            with naming_memory(settings):
                with torch.autocast(settings.device, torch.bfloat16, enabled=settings.precision == "bf16"):
                    loss = loss_of(self.generator())
                self.optimizer.zero_grad()
                loss.backward()
                self._clip(loss)
                self.torn = True
                self.optimizer.step()
                self.torn = False
            self.step += 1
            self._update_average()
            rate = (self.step - first) * settings.batch / (time.perf_counter() - begin)
            yield Progress(self.step, settings.steps, loss.item(), rate)

    def _clip(self, loss: Tensor) -> None:
        """Limit the norm of the gradient; a step that is not finite is an `LdmrtError` that names its inputs."""
        gradients = {name: p.grad for name, p in self.module.named_parameters() if p.grad is not None}
        norm = nn.utils.get_total_norm(gradients.values())
        if math.isfinite(loss.item()) and math.isfinite(norm.item()):
            nn.utils.clip_grads_with_norm_(self.module.parameters(), self.settings.clip, norm)
            return
        found = [f"loss {loss.item()}, gradient norm {norm.item()}"]
        bad = (name for name, gradient in gradients.items() if not torch.isfinite(gradient).all())
        found += [f"first in the gradient of {name}" for name in islice(bad, 1)]
        found += [f"{kind} {listed(values)}" for kind, values in self.inputs().items()]
        raise LdmrtError(
            "train", f"step {self.step} is not finite", found="; ".join(found), hint="a lower --learning-rate"
        )

    def averaged(self) -> M:
        """Return a copy of the module with the averaged weights, in eval mode."""
        copied = copy.deepcopy(self.module)
        copied.load_state_dict(self.average)
        return copied.eval()

    @torch.no_grad()
    def _update_average(self) -> None:
        """Move the averaged weights towards the present ones."""
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))  # a young average forgets its random start
        for name, value in self.module.state_dict().items():
            average = self.average[name]
            if average.is_floating_point():
                average.lerp_(value, 1.0 - decay)
            else:
                average.copy_(value)

    def state(self) -> dict[str, object]:
        """Return everything that `resume` needs."""
        return {
            "step": self.step,
            "about": {**self.about, **self.settings.shaping()},
            "changes": self.changes,
            "module": self.module.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }

    def bytes(self) -> int:
        """Return the size of the state's tensors."""
        moments = (value for values in self.optimizer.state_dict()["state"].values() for value in values.values())
        tensors = [*self.module.state_dict().values(), *self.average.values(), *moments]
        return sum(tensor.nbytes for tensor in tensors)

    def save(self, path: Path) -> None:
        """Write the state to one file, replaced at once."""
        with write_atomically(path) as file:
            try:
                torch.save(self.state(), file)
            except RuntimeError as error:  # torch counts bytes after a write that failed
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None

    def resume(self, path: Path, change: Collection[str] = ()) -> dict[str, Values]:
        """Go on where `save` left off, with the data, the task and the settings of the saved run.

        Args:
            path: The file that `save` wrote.
            change: Names of settings that may differ; those that do are noted in `changes`.

        Returns:
            Both values of each setting that differs, by name.

        Raises:
            LdmrtError: The file is missing or damaged, or a setting differs that `change` does not name.
        """
        shaping = self.settings.shaping()
        try:
            state = torch.load(path, map_location=self.settings.device, weights_only=True)
            if self.settings.steps <= state["step"]:
                del shaping["steps"]  # no step will be taken
            before = {**shaping, **state["about"]}  # a run of an older version has no settings in its state
            differ = changes(path, before, {**self.about, **shaping}, change)
            noted = [
                {"step": state["step"], "name": name, "before": values[0], "now": values[1]}
                for name, values in differ.items()
            ]
            self.changes = [*state.get("changes", []), *noted]
            for part in ("module", "average"):
                for name, value in state[part].items():
                    if not torch.isfinite(value).all():
                        raise LdmrtError("train", f"{name} in {path} is not finite", hint="train without --resume")
            self.module.load_state_dict(state["module"])
            self.average = state["average"]
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
            return differ
        except LdmrtError:
            raise
        except FileNotFoundError:
            raise LdmrtError("train", "nothing to resume", expected=path, hint="train without --resume") from None
        except Exception as error:  # a damaged file can fail in any way
            raise LdmrtError(
                "train", f"cannot resume from {path}", found=first_line(error), hint="train without --resume"
            ) from None
