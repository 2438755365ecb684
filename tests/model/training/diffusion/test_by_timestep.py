"""The loss by timestep: which timesteps, and images in several batches. `test_evaluate_network.py` has the values."""

import torch
from torch import Tensor

from ldmrt.model.training.diffusion.by_timestep import LossByTimestep, even_timesteps, losses_by_timestep
from ldmrt.model.training.diffusion.objective import Objective
from ldmrt.model.training.draws import Draws

SCHEDULER = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon"}


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([x * (t.float() / 1000)[:, None, None, None], x], dim=1)  # the second half is a variance's


def test_timesteps_are_the_middles_of_equal_parts() -> None:
    assert even_timesteps(1000) == list(range(25, 1000, 50))
    assert even_timesteps(40) == list(range(1, 40, 2))
    assert even_timesteps(7) == list(range(7))
    assert even_timesteps(1000, 1) == [500]


def test_mean_of_evenly_spaced_timesteps_is_that_of_all() -> None:
    """Of a smooth loss: the sum over bins is the mean."""
    x0 = torch.randn((40, 2, 6, 6), generator=torch.Generator().manual_seed(0))
    found = losses_by_timestep(network, x0, SCHEDULER, seed=3)
    objective = Objective.of(SCHEDULER, "cpu")
    eps = Draws(3, range(40), stream="loss by timestep ").normal("noise", (2, 6, 6))
    every = []
    for step in range(1000):
        t = torch.full((40,), step)
        alpha, sigma = objective.scales_at(t)
        every.append(objective.losses(network(alpha * x0 + sigma * eps, t)[:, :2], x0, t, eps).mean())
    mean = torch.stack(every).mean()
    # The middle of 50 timesteps is between two of them: half a timestep of a loss that falls by 1. The midpoint rule's
    # own error is (1 / 20)^2 / 24 of a second derivative near 1.
    assert abs(found.simple.mean() - mean) < 0.5 / 1000 + 1.1e-4


def test_batches_have_the_losses_of_their_images() -> None:
    x0 = torch.randn((5, 2, 4, 4), generator=torch.Generator().manual_seed(1))
    whole = losses_by_timestep(network, x0, SCHEDULER, seed=1)
    parts = [losses_by_timestep(network, x0[a:b], SCHEDULER, seed=1, first=a) for a, b in ((0, 2), (2, 5))]
    joined = LossByTimestep.joined(parts)
    assert whole.min_snr is not None
    assert joined.min_snr is not None
    torch.testing.assert_close(joined.simple, whole.simple, rtol=1e-6, atol=0.0)  # float32 sums
    torch.testing.assert_close(joined.min_snr, whole.min_snr, rtol=1e-6, atol=0.0)
    assert torch.equal(joined.times, whole.times)
