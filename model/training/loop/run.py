"""Run a training as a generator: each step yields its progress, and the caller decides when to stop, save or look.

Every random number is that of a sample (`Draws`), so a resumed run takes the very steps that it would have taken.
"""

import copy
import math
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ldmrt.model.training.compiling import compile_networks
from ldmrt.model.training.data.batches import Batches
from ldmrt.model.training.data.captioned import Key, Sample, name_of
from ldmrt.model.training.draws import Draws
from ldmrt.runtime.errors import LdmrtError, LdmrtWarning, first_line

from .averages import Averages
from .checkpointing import checkpoint_blocks
from .loss_scale import MOST, LossScale
from .optimizers import OPTIMIZERS
from .processes import ALONE, Processes
from .settings import Settings, naming_memory
from .states.files import read_state, write_state
from .states.resuming import Values, changes, check_finite, put_moments, with_tuples
from .task import Losses, Progress, TrainingTask, listed, losses_of_images, whole

M = TypeVar("M", bound=nn.Module)


class Run(Generic[M]):
    """Holds a module in training: its weights, their moving averages, the optimizer, and the number of steps taken.

    An opponent, such as a discriminator, learns beside it with an optimizer of its own. The parts of the loss are then
    of one of them each: a part that shall not teach the other is computed from detached images, or frozen weights.
    """

    def __init__(
        self,
        module: M,
        settings: Settings,
        about: Mapping[str, object] | None = None,
        opponent: nn.Module | None = None,
        processes: Processes = ALONE,
    ) -> None:
        """Move a module to the device and begin at step 0.

        Args:
            module: The network, with its first weights; those without `requires_grad` are frozen: neither optimizer,
                average nor state has them.
            settings: How to train it.
            about: What a resumed run must have in common with the saved one, beside its settings: data, task.
            opponent: A network that learns in the same steps; None for none.
            processes: Those that the batches are divided among; the first one alone keeps the average.
        """
        self.about = dict(about or {})
        self.settings = settings
        self.changes: list[dict[str, object]] = []  # of settings, when the run was resumed: step, name, before and now
        self.module = module.to(settings.device).train()
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.frozen = {name for name, weight in self.module.named_parameters() if not weight.requires_grad}
        self.averages = Averages(self.weights(), settings.decays, "cpu" if settings.ema_on_cpu else None)
        learning = [weight for weight in self.module.parameters() if weight.requires_grad]
        self.optimizer = OPTIMIZERS[settings.optimizer](learning, settings.learning_rate)
        self.loss_scale = LossScale() if settings.precision == "fp16" else None
        if settings.checkpointing:
            checkpoint_blocks(self.module)
        self.opponent, self.processes = opponent, processes
        self.opposing: torch.optim.Optimizer | None = None
        if opponent is not None:
            opponent.to(settings.device).train()
            self.opposing = OPTIMIZERS[settings.optimizer](opponent.parameters(), settings.learning_rate)
        if settings.compile:
            for network in self._modules():
                compile_networks(network)
        self.step = 0
        self.skipped: Mapping[Key, str] = {}  # samples whose images could not be read, and why
        self.memory: Mapping[str, Tensor] = {}  # of the task's draws
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
            task.data, settings.seed, settings.batch, skip_unreadable=settings.skip_unreadable, wanted=task.wanted,
            taken=slice(self.processes.rank, None, self.processes.count), regularisation=task.regularisation,
        )  # fmt: skip
        self.skipped = batches.skipped
        if task.memory is not None and self.memory:
            task.memory.load_state_dict(self.memory)
        while self.step < settings.steps:
            rate = settings.rate(self.step)
            for group in (group for optimizer in self._optimizers() for group in optimizer.param_groups):
                group["lr"] = rate
            with naming_memory(settings):
                samples = batches(self.step)
                losses, noted = self._gradient(task, samples, batches)
                count = len(next(iter(losses.values())))
                loss = sum(value.sum().item() for value in losses.values()) / count
                norm = self._update(task, samples, losses, noted, loss)
            self.step += 1
            seen += count
            speed = seen / (time.perf_counter() - begin)
            yield Progress(self.step, settings.steps, loss, speed, losses, noted, rate, norm, self.loss_scale)

    def _gradient(
        self, task: TrainingTask, samples: list[Sample], batches: Batches
    ) -> tuple[Losses, Mapping[str, Tensor]]:
        """Compute the gradient of the present step, part by part; return its samples' losses, and what they noted."""
        settings, count = self.settings, batches.count
        found = list[tuple[Losses, Mapping[str, Tensor]]]()
        for optimizer in self._optimizers():
            optimizer.zero_grad()
        for part in settings.parts(count):
            if own := samples[self.processes.share(part)]:
                draws = Draws(settings.seed, [sample.index for sample in own], settings.device)
                with settings.autocast():
                    losses = task.loss_of(own, draws)
                if own[-1] is samples[-1] and self.step + 1 < settings.steps:
                    batches.prepare(self.step + 1)  # while the gradient is computed
                mean = torch.stack(list(losses.values())).sum() / count
                (mean if self.loss_scale is None else self.loss_scale.scale * mean).backward()
                found.append(({name: value.detach() for name, value in losses.items()}, draws.noted))
            if task.cooperates:
                self.processes.serve_means()
        losses, noted = (whole([one[i] for one in found]) for i in range(2))
        if not self.processes.alone:
            task.share(self.step, self.processes.joined)
        return self.processes.bring_together(self._modules(), losses, noted, batches.skipped)

    def _modules(self) -> list[nn.Module]:
        """Return the module, and the opponent."""
        return [one for one in (self.module, self.opponent) if one is not None]

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the module's optimizer, and the opponent's."""
        return [one for one in (self.optimizer, self.opposing) if one is not None]

    def _update(
        self, task: TrainingTask, samples: list[Sample], losses: Losses, noted: Mapping[str, Tensor], loss: float
    ) -> float:
        """Change the weights by their gradient, and return the norm that it had before it was limited.

        The opponent's gradient is limited by itself. In fp16 a step that is not finite changes nothing, unless there
        were too many in a row; else it is an `LdmrtError`.
        """
        each = [{name: p.grad for name, p in one.named_parameters() if p.grad is not None} for one in self._modules()]
        if self.loss_scale is not None:
            for gradients in filter(None, each):
                torch._foreach_div_(list(gradients.values()), self.loss_scale.scale)
        norms = [nn.utils.get_total_norm(gradients.values()) for gradients in each]
        shown = min((norm.item() for norm in norms), key=math.isfinite)  # the first that is not finite, or the first
        taken = math.isfinite(loss) and math.isfinite(shown)
        scale = self.loss_scale and self.loss_scale.after(taken=taken)
        if taken:
            for one, norm in zip(self._modules(), norms, strict=True):
                nn.utils.clip_grads_with_norm_(one.parameters(), self.settings.clip, norm)
            self.torn = True
            for optimizer in self._optimizers():
                optimizer.step()
            task.after(self.step)
            if self.processes.first:
                self._update_average()
            self.torn = False
            if task.memory is not None:
                task.memory.learn(losses_of_images(losses), noted)
                self.memory = task.memory.state_dict()
        elif scale is None or scale.hopeless:
            named = {f"opponent.{name}": gradient for gradients in each[1:] for name, gradient in gradients.items()}
            names = self.processes.all_of(list(map(name_of, samples)))
            inputs = {"samples": names, **{name: value.tolist() for name, value in noted.items()}}
            raise self._not_finite(loss, shown, {**each[0], **named}, inputs)
        self.loss_scale = scale
        return shown

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

    @property
    def average(self) -> Mapping[str, Tensor]:
        """The averaged weights, of the first decay."""
        return self.averages.first

    def _update_average(self) -> None:
        """Move the averaged weights towards the present ones."""
        self.averages.update(self.weights(), self.step + 1)

    def state(self) -> dict[str, object]:
        """Return everything that `resume` needs."""
        return {
            "step": self.step,
            "torch": str(torch.__version__),
            "about": {**self.about, **self.settings.shaping()},
            "changes": self.changes,
            "module": self.weights(),
            **self.averages.state(),
            "optimizer": self.optimizer.state_dict(),
            "memory": self.memory,
            **self._opposing_state(),
            "loss_scale": self.loss_scale and asdict(self.loss_scale),
        }

    def _opposing_state(self) -> dict[str, object]:
        """Return the opponent's part of the state; nothing without an opponent."""
        if self.opponent is None or self.opposing is None:
            return {}
        return {"opponent": self.opponent.state_dict(), "opposing": self.opposing.state_dict()}

    def bytes(self) -> int:
        """Return the size of the state's tensors."""
        kept = [values for optimizer in self._optimizers() for values in optimizer.state_dict()["state"].values()]
        moments = (value for values in kept for value in values.values() if isinstance(value, Tensor))
        tensors = [*self.weights().values(), *self.averages.tensors(), *moments]
        tensors += self.opponent.state_dict().values() if self.opponent is not None else []
        return sum(tensor.nbytes for tensor in tensors)

    def save(self, path: Path) -> None:
        """Write the state as a folder, which is there at once and whole.

        Raises:
            LdmrtError: A weight is not finite.
            OSError: The state cannot be written.
        """
        state = self.state()
        check_finite(state, f"step {self.step}", "a lower --learning-rate")
        write_state(path, state)

    def resume(self, path: Path, change: Collection[str] = ()) -> dict[str, Values]:
        """Go on where `save` left off, with the data, the task and the settings of the saved run.

        Args:
            path: What `save` wrote.
            change: Names of settings that may differ; those that do are noted in `changes`.

        Returns:
            Both values of each setting that differs, by name.

        Raises:
            LdmrtError: The state is missing or damaged, or a setting differs that `change` does not name.
        """
        shaping = self.settings.shaping()
        try:
            state = read_state(path)
            if self.settings.steps <= state["step"]:
                shaping.pop("steps", None)  # no step will be taken
            before = {
                **shaping,
                **with_tuples(state["about"]),
            }  # older versions saved no settings
            differ = changes(path, before, {**self.about, **shaping}, change)
            noted = [
                {"step": state["step"], "name": name, "before": values[0], "now": values[1]}
                for name, values in differ.items()
            ]
            self.changes = [*map(with_tuples, state.get("changes", [])), *noted]
            check_finite(state, str(path), "train without --resume")
            self.put(state["module"])
            self.averages.load(state)
            put_moments(self.optimizer, state["optimizer"])
            self.memory = {name: value.clone() for name, value in state.get("memory", {}).items()}
            if self.opponent is not None and self.opposing is not None:
                self.opponent.load_state_dict(state["opponent"])
                put_moments(self.opposing, state["opposing"])
            if self.loss_scale is not None and state.get("loss_scale"):
                self.loss_scale = LossScale(**state["loss_scale"])
            self.step = state["step"]
            if (version := state.get("torch", str(torch.__version__))) != torch.__version__:
                now = f"this is {torch.__version__}: rounding may differ from here on"
                warnings.warn(f"train: {path} was saved by torch {version}, {now}", LdmrtWarning, stacklevel=2)
            return differ
        except LdmrtError:
            raise
        except Exception as error:  # a damaged file can fail in any way
            raise LdmrtError(
                "train", f"cannot resume from {path}", found=first_line(error), hint="train without --resume"
            ) from None
