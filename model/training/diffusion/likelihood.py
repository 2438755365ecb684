"""Estimate the log-density of images under a score-based model (Song et al. 2021, arXiv:2011.13456, appendix D.2).

The probability flow takes an image to noise and back without loss. Along it the log-density changes by the divergence
of the flow, of which Hutchinson's estimate needs one product with the network's Jacobian.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from ldmrt.runtime.errors import LdmrtError, NotFinite
from ldmrt.runtime.samplers.registry import plan_from_config

Score = Callable[[Tensor, Tensor], Tensor]  # score(x, level) -> (B, C, h, w), of x (B, C, h, w) and levels (B,)


def log_density(
    score: Score,
    images: Tensor,
    scheduler: Mapping[str, object],
    *,
    steps: int = 256,
    probes: int | None = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Estimate the log-density of images, in nats.

    The flow dx / d log(sigma) = -sigma^2 score(x, sigma) runs from `sigma_min` to `sigma_max` by Runge and Kutta's
    method of fourth order; there the images are normal with deviation `sigma_max`.

    Args:
        score: The network: the gradient of the log-density of images with noise, as a `PlainUNet` of a score SDE
            predicts it, of images and their noise levels.
        images: Images at the noise level `sigma_min`, (B, C, h, w): data with that much noise. float32 or float64.
        scheduler: A scheduler config of ScoreSdeVeScheduler.
        steps: Steps between the levels, each with 4 evaluations of the network.
        probes: Random signs of which the divergence is estimated (Hutchinson 1990), the same in all steps; None for
            the divergence itself, by one product for each of the C * h * w numbers.
        generator: Draws the signs; None for torch's own.

    Returns:
        The log-density of each image, (B,), of the images' dtype. Its mean over probes is that of the model, to the
        error of the steps.

    Raises:
        LdmrtError: Steps or probes are below 1, or the scheduler is of another class.
        NotFinite: A density is not finite.
    """
    if steps < 1 or (probes is not None and probes < 1):
        found = f"{steps} steps, {probes} probes"
        raise LdmrtError("likelihood", "invalid number of steps or probes", expected="at least 1", found=found)
    levels = plan_from_config(scheduler, steps + 1, name="score_ve_euler").sigma[::-1].tolist()
    signs = _directions(images, probes, generator)
    x, change = images, torch.zeros(len(images), dtype=images.dtype, device=images.device)
    for low, high in pairwise(levels):
        h, middle = math.log(high / low), math.sqrt(low * high)
        flow_1, spread_1 = _flow(score, x, low, signs)
        flow_2, spread_2 = _flow(score, x + h / 2 * flow_1, middle, signs)
        flow_3, spread_3 = _flow(score, x + h / 2 * flow_2, middle, signs)
        flow_4, spread_4 = _flow(score, x + h * flow_3, high, signs)
        x = x + h / 6 * (flow_1 + 2 * flow_2 + 2 * flow_3 + flow_4)
        change = change + h / 6 * (spread_1 + 2 * spread_2 + 2 * spread_3 + spread_4)
    numbers, last = images[0].numel(), levels[-1]
    at_last = -x.flatten(1).square().sum(1) / (2 * last**2) - numbers * math.log(last * math.sqrt(2 * math.pi))
    density = at_last + change * (1 if probes else numbers)
    if not density.isfinite().all():
        raise NotFinite("likelihood", "the density is not finite", hint="more steps, or float64")
    return density


def bits_per_dimension(density: Tensor, numbers: int, spacing: float) -> Tensor:
    """Convert log-densities to bits that each of an image's numbers takes.

    Args:
        density: Log-densities in nats, (B,).
        numbers: How many numbers an image has, C * h * w.
        spacing: The distance of neighbouring values of a number: 1 / 255 for images of 8 bits from 0 to 1.

    Returns:
        Bits, (B,).
    """
    return -(density / numbers + math.log(spacing)) / math.log(2)


def _directions(images: Tensor, probes: int | None, generator: torch.Generator | None) -> Tensor:
    """Return the vectors that are multiplied with the Jacobian, (P, B, C, h, w)."""
    if probes is None:
        numbers = images[0].numel()
        unit = torch.eye(numbers, dtype=images.dtype, device=images.device).reshape(numbers, 1, *images.shape[1:])
        return unit.expand(numbers, *images.shape)
    device = images.device if generator is None else generator.device
    signs = torch.randint(0, 2, (probes, *images.shape), generator=generator, device=device)
    return (2 * signs - 1).to(images)


def _flow(score: Score, x: Tensor, level: float, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the flow at x, (B, C, h, w), and the mean over directions v of v J v, (B,), of its Jacobian J."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        flow = -(level**2) * score(x, torch.full((len(x),), level, dtype=x.dtype, device=x.device))
        total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for v in directions:
            (product,) = torch.autograd.grad(flow, x, v, retain_graph=True)
            total = total + (product * v).flatten(1).sum(1)
    return flow.detach(), total.detach() / len(directions)
