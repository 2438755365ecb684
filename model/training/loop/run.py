"""Run a training as a generator: each step yields its progress, and the caller decides when to stop, save or look.

Every random number is that of a sample (`Draws`), so a resumed run takes the very steps that it would have taken.
"""

import copy
import math
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ldmrt.model.training.data.batches import Batches, Wanted
from ldmrt.model.training.data.captioned import Captioned, Key, Sample, name_of
from ldmrt.model.training.data.metadata import LISTED
from ldmrt.model.training.draws import Draws
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning, first_line
from ldmrt.runtime.files.writing import write_atomically

from .optimizers import OPTIMIZERS
from .resuming import Values, changes
from .settings import Settings, naming_memory

M = TypeVar("M", bound=nn.Module)
Losses = Mapping[str, Tensor]  # of B samples, (B,) each, by the name of the part


@dataclass(frozen=True)
class TrainingTask:
    """States what a training minimises: the mean over samples of the sum of their losses.

    Attributes:
        data: The captioned images.
        loss_of: Computes the losses of some samples from their random numbers, each sample's by itself.
        timesteps: How many timesteps its draws are from; 0 where it has none.
        wanted: Tells whether the image of a sample is needed; others are not decoded.
    """

    data: Captioned
    loss_of: Callable[[list[Sample], Draws], Losses]
    timesteps: int = 0
    wanted: Wanted = lambda _: True


@dataclass(frozen=True)
class Progress:
    """Reports one finished step.

    Attributes:
        step: Its number, from 1.
        steps: How many there will be.
        loss: The mean over its samples.
        rate: Images a second since the loop began.
        losses: The parts of each sample's loss, (batch,) each, by name.
        noted: The integers that its samples drew, (batch,) each, such as timesteps.
        learning_rate: The step's.
        gradient: The norm of its gradient before it was clipped.
    """

    step: int
    steps: int
    loss: float
    rate: float
    losses: Losses
    noted: Mapping[str, Tensor]
    learning_rate: float
    gradient: float


def listed(values: Iterable[object]) -> str:
    """Name values, the first of them where there are many."""
    names = [str(value) for value in values]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


class Run(Generic[M]):
    """Holds a module in training: its weights, their moving average, the optimizer, and the number of steps taken."""

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
        self.optimizer = OPTIMIZERS[settings.optimizer](self.module.parameters(), settings.learning_rate)
        self.step = 0
        self.skipped: Mapping[Key, str] = {}  # samples whose images could not be read, and why
        self.torn = False  # weights that an interrupted update has changed in part are not to be saved

    def optimise(self, task: TrainingTask) -> Iterator[Progress]:
        """Minimise a task's loss.

        Yields:
            The progress of each step, until `settings.steps` are taken.

        Raises:
            LdmrtError: An image cannot be read, a loss or gradient is not finite, or memory runs out.
        """
        settings, begin, seen = self.settings, time.perf_counter(), 0
        batches = Batches(
            task.data, settings.seed, settings.batch, skip_unreadable=settings.skip_unreadable, wanted=task.wanted
        )
        self.skipped = batches.skipped
        while self.step < settings.steps:
            rate = settings.rate(self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            with naming_memory(settings):
                samples = batches(self.step)
                losses, noted = self._gradient(task, samples, batches)
                loss = sum(value.sum().item() for value in losses.values()) / len(samples)
                named = {"samples": map(name_of, samples), **{name: value.tolist() for name, value in noted.items()}}
                norm = self._clip(loss, named)
                self.torn = True
                self.optimizer.step()
                self.torn = False
            self.step += 1
            self._update_average()
            seen += len(samples)
            speed = seen / (time.perf_counter() - begin)
            yield Progress(self.step, settings.steps, loss, speed, losses, noted, rate, norm)

    def _gradient(
        self, task: TrainingTask, samples: list[Sample], batches: Batches
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the gradient of the present step, part by part; return its samples' losses, and what they noted."""
        settings, count = self.settings, len(samples)
        found = list[tuple[Losses, Mapping[str, Tensor]]]()
        self.optimizer.zero_grad()
        for part in settings.parts(count):
            draws = Draws(settings.seed, [sample.index for sample in samples[part]], settings.device)
            with settings.autocast():
                losses = task.loss_of(samples[part], draws)
            if part.stop == count and self.step + 1 < settings.steps:
                batches.prepare(self.step + 1)  # while the gradient is computed
            (torch.stack(list(losses.values())).sum() / count).backward()
            found.append(({name: value.detach() for name, value in losses.items()}, draws.noted))
        losses, noted = (
            {name: torch.cat([one[name] for one in each]) for name in each[0]} for each in zip(*found, strict=True)
        )
        return losses, noted

    def _clip(self, loss: float, inputs: Mapping[str, Iterable[object]]) -> float:
        """Limit the norm of the gradient and return what it was; a step that is not finite is an `LdmrtError`.

        Args:
            loss: The step's.
            inputs: What the error names, such as the samples.
        """
        gradients = {name: p.grad for name, p in self.module.named_parameters() if p.grad is not None}
        norm = nn.utils.get_total_norm(gradients.values())
        if math.isfinite(loss) and math.isfinite(norm.item()):
            nn.utils.clip_grads_with_norm_(self.module.parameters(), self.settings.clip, norm)
            return norm.item()
        found = [f"loss {loss}, gradient norm {norm.item()}"]
        bad = (name for name, gradient in gradients.items() if not torch.isfinite(gradient).all())
        found += [f"first in the gradient of {name}" for name in islice(bad, 1)]
        found += [f"{kind} {listed(values)}" for kind, values in inputs.items()]
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
            "torch": str(torch.__version__),
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
                shaping.pop("steps", None)  # no step will be taken
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
            if (version := state.get("torch", str(torch.__version__))) != torch.__version__:
                now = f"this is {torch.__version__}: rounding may differ from here on"
                warnings.warn(f"train: {path} was saved by torch {version}, {now}", LdmrtWarning, stacklevel=2)
            return differ
        except LdmrtError:
            raise
        except FileNotFoundError:
            raise LdmrtError("train", "nothing to resume", expected=path, hint="train without --resume") from None
        except Exception as error:  # a damaged file can fail in any way
            raise LdmrtError(
                "train", f"cannot resume from {path}", found=first_line(error), hint="train without --resume"
            ) from None
