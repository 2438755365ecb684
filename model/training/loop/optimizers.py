"""Choose how a step changes weights, and how the learning rate changes from step to step."""

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.nearest import suggestion
from ldmrt.runtime.optional import unavailable

POWER = 2.0  # of the polynomial schedule
LAST = 1e-7  # its learning rate at the end, as in diffusers
# The share of the learning rate after the warm-up, as a function of the progress from 0 to 1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),  # Loshchilov & Hutter 2017, arXiv:1608.03983
    "linear": lambda progress: 1 - progress,
    "polynomial": lambda progress: (1 - progress) ** POWER,
}


class Lion(torch.optim.Optimizer):
    """Moves every weight by the learning rate, in the direction that momentum and gradient have together.

    Chen et al. 2023, arXiv:2302.06675, algorithm 2, without weight decay.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        """Take weights, a learning rate, and the shares of the momentum in a step and in the next momentum."""
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            first, second = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                weight.sub_(group["lr"] * momentum.lerp(weight.grad, 1 - first).sign())
                momentum.lerp_(weight.grad, 1 - second)


Weights = Iterable[nn.Parameter]
BETAS = (0.9, 0.99)  # of AdamW
SMALL, BLOCK = 4096, 256  # numbers of a weight whose moments stay in float32, and of those that share a scale


def adamw8bit(weights: Weights, rate: float) -> torch.optim.Optimizer:
    """Return AdamW whose moments are kept in 8 bits, of the package bitsandbytes (Dettmers et al. 2022, 2110.02861).

    Its state is that of any optimizer of torch: it holds no table of the levels, which is the same for all weights.

    Raises:
        LdmrtError: The package is not installed, or does not work.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of 4-bit kernels, which no optimizer has
    try:
        import bitsandbytes
    except (ImportError, OSError) as error:
        raise unavailable(error, "train") from error

    tables = {"qmap1": "dynamic", "qmap2": "udynamic"}

    class Plain(bitsandbytes.optim.AdamW8bit):
        def state_dict(self) -> dict[str, Any]:
            state = torch.optim.Optimizer.state_dict(self)
            kept = {
                key: {name: value for name, value in values.items() if name not in tables}
                for key, values in state["state"].items()
            }
            return {**state, "state": kept}

        def load_state_dict(self, state_dict: Any, move_to_device: Any = True) -> None:
            super().load_state_dict(state_dict, move_to_device)
            for weight, values in self.state.items():
                for name, table in tables.items():
                    if values["state1"].dtype == torch.uint8:
                        values[name] = self.name2qmap[table].to(weight.device)

    kept = list(weights)
    for weight in kept:  # as its first step does, when the moments have been laid out as the weights
        weight.data = weight.data.contiguous()
    return Plain(kept, lr=rate, betas=BETAS, weight_decay=0.0, min_8bit_size=SMALL)


def bytes_in_8bit(weights: Weights) -> int:
    """Return the bytes of the moments that `adamw8bit` keeps: two numbers a weight, and two scales a block."""
    counts = [weight.numel() for weight in weights]
    return sum(2 * (4 * count if count < SMALL else count + 4 * -(-count // BLOCK)) for count in counts)


OPTIMIZERS: dict[str, Callable[[Weights, float], torch.optim.Optimizer]] = {
    "adamw": lambda weights, rate: torch.optim.AdamW(weights, lr=rate, betas=BETAS, weight_decay=0.0),
    "adamw8bit": adamw8bit,
    "sgd": lambda weights, rate: torch.optim.SGD(weights, lr=rate, momentum=0.9),
    "lion": lambda weights, rate: Lion(weights, lr=rate),
}


def learning_rate(schedule: str, rate: float, step: int, steps: int, warmup: int) -> float:
    """Return the learning rate of a step: a linear warm-up from 0, and then the schedule.

    Args:
        schedule: A key of `SCHEDULES`.
        rate: The learning rate at the end of the warm-up.
        step: Steps taken before.
        steps: Steps of the whole run.
        warmup: Steps of the warm-up.
    """
    if step < warmup:
        return rate * step / warmup
    share = SCHEDULES[schedule](min(1.0, (step - warmup) / max(1, steps - warmup)))
    last = min(LAST, rate) if schedule == "polynomial" else 0.0
    return last + (rate - last) * share


def check_choice(kind: str, name: str, names: Iterable[str]) -> None:
    """Refuse a name that is none of these.

    Raises:
        LdmrtError: States `kind`, the names and the one that was likely meant.
    """
    known = list(names)
    if name not in known:
        problem = f"unknown {kind}{suggestion(name, known)}"
        raise LdmrtError("train", problem, expected=", ".join(known), found=name)
