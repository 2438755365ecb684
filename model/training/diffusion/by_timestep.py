"""Measure the loss of images at evenly spaced timesteps, with the same noise at each of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldmrt.model.training.draws import Draws
from ldmrt.runtime.samplers.config import Config

from .bound import Network
from .objective import FLOW, Objective

COUNT = 20  # timesteps
GAMMA = 5.0  # of min-SNR weighting, as its authors chose it


@dataclass(frozen=True)
class LossByTimestep:
    """Holds the losses of B images at K timesteps.

    Attributes:
        times: The timesteps as the network is given them, (K,).
        simple: The mean squared error of what the network predicts, (B, K): L_simple (Ho et al. 2020, equation 14).
        min_snr: The same with min-SNR weights of gamma 5, (B, K) (Hang et al. 2023, arXiv:2303.09556); None of a
            rectified flow, which has no such weights.
    """

    times: Tensor
    simple: Tensor
    min_snr: Tensor | None

    @classmethod
    def joined(cls, parts: "Sequence[LossByTimestep]") -> "LossByTimestep":
        """Join the losses of several batches of images at the same timesteps."""
        weighted = [part.min_snr for part in parts if part.min_snr is not None]
        simple = torch.cat([part.simple for part in parts])
        return cls(parts[0].times, simple, torch.cat(weighted) if weighted else None)


def even_timesteps(total: int, count: int = COUNT) -> list[int]:
    """Return the middles of `count` equal parts of timesteps 0 to `total` - 1; all where there are no more than that.

    The mean of a loss over them estimates its mean over all timesteps.
    """
    count = min(count, total)
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]


@torch.no_grad()
def losses_by_timestep(
    network: Network, x0: Tensor, scheduler: Config, *, seed: int = 0, first: int = 0
) -> LossByTimestep:
    """Measure the losses of a network at 20 evenly spaced timesteps.

    Args:
        network: Predicts what the scheduler's prediction type says; channels beyond those of the images, such as a
            variance's, are not measured.
        x0: Images or latents as the network sees them, (B, C, h, w), float32.
        scheduler: A scheduler's config: noise schedule and prediction type.
        seed: Of the noise, which is the same at each timestep.
        first: Image i has the noise of sample `first` + i.

    Returns:
        The losses of each image, float32.

    Raises:
        LdmrtError: The prediction type is unknown, or does not fit the noise schedule.
    """
    plain = Objective.of(scheduler, "cpu")
    weighted = [] if plain.prediction == FLOW else [Objective.of(scheduler, "cpu", snr_gamma=GAMMA)]
    places = even_timesteps(len(plain.times))
    eps = Draws(seed, range(first, first + len(x0)), stream="loss by timestep ").normal("noise", x0.shape[1:])
    losses = list[Tensor]()
    for place in places:
        t = torch.full((len(x0),), place)
        alpha, sigma = plain.scales_at(t)
        predicted = network(alpha * x0 + sigma * eps, plain.times[t])[:, : x0.shape[1]]
        losses.append(torch.stack([each.losses(predicted, x0, t, eps) for each in (plain, *weighted)]))
    simple, *min_snr = torch.stack(losses, dim=2)  # (1 or 2, B, K)
    return LossByTimestep(plain.times[places], simple, min_snr[0] if min_snr else None)
