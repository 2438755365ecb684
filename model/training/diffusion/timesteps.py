"""Draw the timesteps of training samples: evenly, more often in the middle, or where the loss is large."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ldmrt.model.training.draws import Draws

TIMESTEPS = "timesteps"  # what the draws of timesteps are for
MODE_SCALE = 1.29  # Esser et al. 2024, table 1: of their best results with `mode`


def _logit_normal(draws: Draws) -> Tensor:
    """Draw numbers of (0, 1), whose logits have mean 0 and variance 1 (Esser et al. 2024, arXiv:2403.03206, eq. 19)."""
    return draws.normal("timesteps", ()).double().sigmoid()


def _mode(draws: Draws) -> Tensor:
    """Draw numbers of [0, 1] with heavy tails and a mode in the middle (Esser et al. 2024, equation 20)."""
    u = draws.uniform("timesteps").double()
    return 1 - u - MODE_SCALE * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)


DENSITIES: dict[str, Callable[[Draws], Tensor]] = {"logit_normal": _logit_normal, "mode": _mode}
SAMPLINGS = ("uniform", *DENSITIES, "importance")


class Importance:
    """Draws timesteps in proportion to the root of their mean squared loss (Nichol & Dhariwal 2021, equation 18).

    The last 10 losses of each timestep are remembered. Until each has 10, all are drawn alike.
    """

    REMEMBERED = 10
    EVENLY = 0.001  # share of the draws that are even, so that none is forgotten (improved-diffusion's)

    def __init__(self, count: int) -> None:
        """Remember nothing of `count` timesteps."""
        self.losses = torch.zeros(count, self.REMEMBERED, dtype=torch.float64)
        self.seen = torch.zeros(count, dtype=torch.int64)

    @property
    def probabilities(self) -> Tensor:
        """How often each timestep is drawn, (T,), float64."""
        count = len(self.seen)
        if (self.seen < self.REMEMBERED).any():
            return torch.full((count,), 1 / count, dtype=torch.float64)
        root = self.losses.square().mean(dim=1).sqrt()
        return (1 - self.EVENLY) * root / root.sum() + self.EVENLY / count

    def draw(self, draws: Draws) -> Tensor:
        """Draw a timestep for each sample, (B,), int64."""
        ends = self.probabilities.cumsum(0)
        u = draws.uniform("timesteps").cpu().double() * ends[-1]
        return torch.searchsorted(ends, u, right=True).clamp(max=len(ends) - 1)

    def correction(self, t: Tensor) -> Tensor:
        """Return by what the losses at timesteps (B,) are multiplied, so that their mean is that of even draws."""
        return (1 / (len(self.seen) * self.probabilities)).to(t.device)[t]

    def learn(self, losses: Tensor, noted: Mapping[str, Tensor]) -> None:
        """Remember the corrected losses (B,) of a step, in the order of its samples."""
        t = noted[TIMESTEPS].cpu()
        plain = losses.cpu().double() / self.correction(t)
        for timestep, loss in zip(t.tolist(), plain.tolist(), strict=True):
            self.losses[timestep, self.seen[timestep] % self.REMEMBERED] = loss
            self.seen[timestep] += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is remembered."""
        return {"losses": self.losses, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Remember what `state_dict` returned."""
        self.losses, self.seen = state["losses"].cpu(), state["seen"].cpu()
