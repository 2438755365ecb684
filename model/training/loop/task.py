"""State what a training minimises, and what it reports of each step."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ldmrt.model.training.data.batches import Wanted
from ldmrt.model.training.data.captioned import Captioned, Sample
from ldmrt.model.training.data.metadata import LISTED
from ldmrt.model.training.data.regularisation import REGULARISATION, Regularisation
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.latents import LatentCache

from .loss_scale import LossScale

Losses = Mapping[str, Tensor]  # of B samples, (B,) each, by the name of the part


def whole(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join what the parts of a batch gave, by name."""
    return {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def losses_of_images(losses: Losses) -> Tensor:
    """Return the loss of each of B samples, (B,), without that of the regularisation image beside it."""
    return torch.stack([value for name, value in losses.items() if name != REGULARISATION]).sum(dim=0)


def listed(values: Iterable[object]) -> str:
    """Name values, the first of them where there are many."""
    names = [str(value) for value in values]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


class Memory(Protocol):
    """Learns from the losses of each step, such as which timesteps have large ones; part of a run's state."""

    def learn(self, losses: Tensor, noted: Mapping[str, Tensor]) -> None:
        """Learn from the losses of a step's samples, (B,), and from what they noted."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what has been learned."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state_dict` returned."""


@dataclass(frozen=True)
class TrainingTask:
    """States what a training minimises: the mean over samples of the sum of their losses.

    Attributes:
        data: The captioned images.
        loss_of: Computes the losses of some samples from their random numbers, each sample's by itself.
        timesteps: How many timesteps its draws are from; 0 where it has none.
        wanted: Tells whether the image of a sample is needed; others are not decoded.
        memory: What its draws learn from the losses of each step; None for nothing.
        after: Called with the number of steps taken before, after each step's update of the weights.
        share: Called before that, where several processes train, with that number and a function that joins values of
            a process's samples, (b, ...) or None, to those of all samples of the batch, (B, ...).
        cooperates: Whether `loss_of` asks the other processes for a mean.
        networks: Those that `loss_of` computes with, beside the module in training and its opponent.
        cache: Keeps latents; None where there are none.
        regularisation: Gives each sample a regularisation image, of which `loss_of` has a loss of its own; None for
            none.
    """

    data: Captioned
    loss_of: Callable[[list[Sample], Draws], Losses]
    timesteps: int = 0
    wanted: Wanted = lambda _: True
    memory: Memory | None = None
    after: Callable[[int], None] = lambda _: None
    share: Callable[[int, Callable[[Tensor | None], Tensor]], None] = lambda step, joined: None
    cooperates: bool = False
    networks: Sequence[nn.Module] = ()
    cache: LatentCache | None = None
    regularisation: Regularisation | None = None


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
