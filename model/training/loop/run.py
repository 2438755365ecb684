"""Run a training as a generator: each step yields its progress, and the caller decides when to stop, save or look.

Every random number is that of a sample (`Draws`), so a resumed run takes the very steps that it would have taken.
"""

import copy
import math
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
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

from .checkpointing import checkpoint_blocks
from .loss_scale import MOST, LossScale
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
        loss_scale: What the loss is scaled by after it, in fp16; None in other precisions.
    """

    step: int
    steps: int
    loss: float
    rate: float
    losses: Losses
    noted: Mapping[str, Tensor]
    learning_rate: float
    gradient: float
    loss_scale: LossScale | None = None

    @property
    def taken(self) -> bool:
        """Whether it changed weights: a step in fp16 whose gradient is not finite is skipped."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient)


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
            module: The network, with its first weights; those without `requires_grad` are frozen: neither optimizer,
                average nor state has them.
            settings: How to train it.
            about: What a resumed run must have in common with the saved one, beside its settings: data, task.
        """
        self.about = dict(about or {})
        self.settings = settings
        self.changes: list[dict[str, object]] = []  # of settings, when the run was resumed: step, name, before and now
        self.module = module.to(settings.device).train()
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.frozen = {name for name, weight in self.module.named_parameters() if not weight.requires_grad}
        self.average = {name: value.clone() for name, value in self.weights().items()}
        learning = [weight for weight in self.module.parameters() if weight.requires_grad]
        self.optimizer = OPTIMIZERS[settings.optimizer](learning, settings.learning_rate)
        self.loss_scale = LossScale() if settings.precision == "fp16" else None
        if settings.checkpointing:
            checkpoint_blocks(self.module)
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
        settings, begin, first = self.settings, time.perf_counter(), self.step
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
                loss = sum(value.sum().item() for value in losses.values()) / settings.batch
                named = {"samples": map(name_of, samples), **{name: value.tolist() for name, value in noted.items()}}
                norm = self._update(loss, named)
            self.step += 1
            speed = (self.step - first) * settings.batch / (time.perf_counter() - begin)
            yield Progress(self.step, settings.steps, loss, speed, losses, noted, rate, norm, self.loss_scale)

    def _gradient(
        self, task: TrainingTask, samples: list[Sample], batches: Batches
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the gradient of the present step, part by part; return its samples' losses, and what they noted."""
        settings, first = self.settings, self.step * self.settings.batch
        found = list[tuple[Losses, Mapping[str, Tensor]]]()
        self.optimizer.zero_grad()
        for part in settings.parts:
            draws = Draws(settings.seed, range(first + part.start, first + part.stop), settings.device)
            with settings.autocast():
                losses = task.loss_of(samples[part], draws)
            if part.stop == settings.batch and self.step + 1 < settings.steps:
                batches.prepare(self.step + 1)  # while the gradient is computed
            mean = torch.stack(list(losses.values())).sum() / settings.batch
            (mean if self.loss_scale is None else self.loss_scale.scale * mean).backward()
            found.append(({name: value.detach() for name, value in losses.items()}, draws.noted))
        losses, noted = (
            {name: torch.cat([one[name] for one in each]) for name in each[0]} for each in zip(*found, strict=True)
        )
        return losses, noted

    def _update(self, loss: float, inputs: Mapping[str, Iterable[object]]) -> float:
        """Change the weights by their gradient, of limited norm, and return what the norm was.

        In fp16 a step that is not finite changes none, unless there were too many in a row; else it is an `LdmrtError`.

        Args:
            loss: The step's.
            inputs: What the error names, such as the samples.
        """
        gradients = {name: p.grad for name, p in self.module.named_parameters() if p.grad is not None}
        if self.loss_scale is not None and gradients:
            torch._foreach_div_(list(gradients.values()), self.loss_scale.scale)
        norm = nn.utils.get_total_norm(gradients.values())
        taken = math.isfinite(loss) and math.isfinite(norm.item())
        scale = self.loss_scale and self.loss_scale.after(taken=taken)
        if taken:
            nn.utils.clip_grads_with_norm_(self.module.parameters(), self.settings.clip, norm)
            self.torn = True
            self.optimizer.step()
            self._update_average()
            self.torn = False
        elif scale is None or scale.hopeless:
            raise self._not_finite(loss, norm.item(), gradients, inputs)
        self.loss_scale = scale
        return norm.item()

    def _not_finite(
        self, loss: float, norm: float, gradients: Mapping[str, Tensor], inputs: Mapping[str, Iterable[object]]
    ) -> LdmrtError:
        """Return the error of a step that is not finite."""
        found = [f"loss {loss}, gradient norm {norm}"]
        bad = (name for name, gradient in gradients.items() if not torch.isfinite(gradient).all())
        found += [f"first in the gradient of {name}" for name in islice(bad, 1)]
        found += [f"{kind} {listed(values)}" for kind, values in inputs.items()]
        problem, hint = f"step {self.step} is not finite", "a lower --learning-rate"
        if self.loss_scale is not None:
            scale = self.loss_scale.scale
            problem = (
                f"step {self.step} is not finite in fp16, as the {MOST - 1} before it, with a loss scale of {scale:g}"
            )
            hint = "a lower --learning-rate, or --precision bf16"
        return LdmrtError("train", problem, found="; ".join(found), hint=hint)

    def weights(self) -> dict[str, Tensor]:
        """Return what changes in training: the weights that are not frozen, and all buffers."""
        return {name: value for name, value in self.module.state_dict().items() if name not in self.frozen}

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Copy values of all `weights` into the module."""
        frozen = {name: value for name, value in self.module.state_dict().items() if name in self.frozen}
        self.module.load_state_dict({**frozen, **weights})

    def averaged(self) -> M:
        """Return a copy of the module with the averaged weights, in eval mode."""
        copied = copy.deepcopy(self.module)
        copied.load_state_dict({**copied.state_dict(), **self.average})
        return copied.eval()

    @torch.no_grad()
    def _update_average(self) -> None:
        """Move the averaged weights towards the present ones."""
        taken = self.step + 1
        decay = min(self.settings.ema, (1 + taken) / (10 + taken))  # a young average forgets its random start
        for name, value in self.weights().items():
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
            "module": self.weights(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "loss_scale": self.loss_scale and asdict(self.loss_scale),
        }

    def bytes(self) -> int:
        """Return the size of the state's tensors."""
        moments = (value for values in self.optimizer.state_dict()["state"].values() for value in values.values())
        tensors = [*self.weights().values(), *self.average.values(), *moments]
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
            self.put(state["module"])
            self.average = state["average"]
            self.optimizer.load_state_dict(state["optimizer"])
            if self.loss_scale is not None and state.get("loss_scale"):
                self.loss_scale = LossScale(**state["loss_scale"])
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
