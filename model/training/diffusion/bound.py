"""The variational bound of a diffusion model, term by term, in nats (Ho et al. 2020, arXiv:2006.11239, equation 5).

-log p(x0) <= L_T + L_{T-1} + ... + L_1 + L_0

L_T     = KL(q(x_T | x0) || N(0, 1))                            `prior`
L_{t-1} = KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t))          `terms` at t > 0
L_0     = -log p(x0 | x_1), of images of 256 levels             `terms` at t = 0

Of latents, which have no levels, L_0 is that of a density, and so is the whole bound: it may be below 0.

`bound_of` estimates them all for a network.

Timesteps count from 0, so x_t is the image after t + 1 steps of noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldmrt.model.training.draws import Draws
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.samplers.config import Config

from .levels import check_epsilon, cumulative_alphas

LEVELS = 255  # between the darkest and the brightest of an image in [-1, 1]
VLB_WEIGHT = 0.001  # of the bound in L_hybrid
LEAST = 1e-12  # probability of a level, so that its logarithm is finite
Network = Callable[[Tensor, Tensor], Tensor]  # network(x, t), of x (B, C, H, W) and timesteps (B,)
# The image that a network sees, by what it predicts: a function of (alpha, sigma, x_t, prediction).
SEEN: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda alpha, sigma, x, said: (x - sigma * said) / alpha,
    "v_prediction": lambda alpha, sigma, x, said: alpha * x - sigma * said,
    "sample": lambda alpha, sigma, x, said: said,
}
KINDS = ("fixed_small", "fixed_large", "learned_range")  # of the variance of p
SAME = {None: KINDS[0], "fixed_small_log": KINDS[0]}  # names of diffusers for one of them


@dataclass(frozen=True)
class Chain:
    """Holds the Markov chain of a noise schedule: x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps, of T timesteps.

    Attributes:
        abar: The cumulative products of 1 - beta, (T,), float64.
    """

    abar: Tensor

    @classmethod
    def of(cls, scheduler: Config, device: str = "cpu") -> "Chain":
        """Return the chain of a scheduler's noise schedule, on a device that has float64."""
        return cls(cumulative_alphas(scheduler).to(device))

    @property
    def before(self) -> Tensor:
        """The products up to the timestep before, (T,)."""
        return torch.cat([self.abar.new_ones(1), self.abar[:-1]])

    @property
    def beta(self) -> Tensor:
        """The variances of the steps' noise, (T,)."""
        return 1 - self.abar / self.before

    @property
    def posterior_variance(self) -> Tensor:
        """The variances of q(x_{t-1} | x_t, x0), (T,); the first is 0 (equation 7)."""
        return self.beta * (1 - self.before) / (1 - self.abar)

    def posterior_mean(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return the means of q(x_{t-1} | x_t, x0) for B images (B, C, H, W) at timesteps (B,) (equation 7)."""
        of_x0 = self.before.sqrt() * self.beta / (1 - self.abar)
        of_x = (1 - self.beta).sqrt() * (1 - self.before) / (1 - self.abar)
        return _each(of_x0[t], x0) * x0 + _each(of_x[t], x) * x

    def log_variance(self, kind: str, t: Tensor, v: Tensor | None = None) -> Tensor:
        """Return the logarithms of the variance of p(x_{t-1} | x_t).

        Args:
            kind: "fixed_small", that of the posterior; "fixed_large", beta; or "learned_range", between the two. At t=0
                the posterior's is 0, and that of t=1 stands for it.
            t: Timesteps, (B,).
            v: The network's second half for "learned_range", (B, C, H, W): -1 is the smallest, 1 the largest variance
                (Nichol & Dhariwal 2021, arXiv:2102.09672, equation 15).

        Returns:
            (B, 1, 1, 1), or (B, C, H, W) where it is learned.

        Raises:
            LdmrtError: The kind is unknown, or `v` is missing.
        """
        if kind not in KINDS or (kind == "learned_range" and v is None):
            expected = f"{', '.join(KINDS[:2])}, or learned_range and the network's second half"
            raise LdmrtError("bound", "unsupported variance", expected=expected, found=kind)
        small = torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]]).log()
        large = self.beta.log()
        if v is not None and kind == "learned_range":
            share = (v + 1) / 2
            return share * _each(large[t], v) + (1 - share) * _each(small[t], v)
        fixed = small if kind == "fixed_small" else torch.cat([small[:1], large[1:]])
        return fixed[t][:, None, None, None]


def gaussian_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance) || N(other mean, other variance)) in nats, number by number."""
    far = (mean - other_mean).square() * torch.exp(-other_log_variance)
    return 0.5 * (other_log_variance - log_variance + torch.exp(log_variance - other_log_variance) + far - 1)


def level_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the log-probability of an image's levels under a Gaussian that is discretised to 256 levels (equation 13).

    Args:
        x: An image of 256 levels, scaled to [-1, 1].
        mean: The Gaussian's mean.
        log_variance: The logarithm of its variance.

    Returns:
        Nats, number by number. The darkest and the brightest level have all of what is beyond them.
    """
    scale = torch.exp(-0.5 * log_variance)
    above, below = ((x - mean + side / LEVELS) * scale for side in (1, -1))
    darkest, brightest = x < -1 + 1 / LEVELS, x > 1 - 1 / LEVELS
    # By the nearer tail: a difference of two numbers near 1 has lost its digits.
    upper, lower = torch.where(below > 0, -below, above), torch.where(below > 0, -above, below)
    inner = torch.special.ndtr(upper) - torch.special.ndtr(lower)
    ends = torch.where(darkest, torch.special.ndtr(above), torch.special.ndtr(-below))
    return torch.where(darkest | brightest, ends, inner).clamp(min=LEAST).log()


def density_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the logarithm of a Gaussian's density, in nats, number by number."""
    far = (x - mean).square() * torch.exp(-log_variance)
    return -0.5 * (math.log(2 * math.pi) + log_variance + far)


def prior(chain: Chain, x0: Tensor) -> Tensor:
    """Return L_T of B images (B, C, H, W): nats per dimension, (B,)."""
    mean, log_variance = chain.abar[-1].sqrt() * x0, (1 - chain.abar[-1]).log()
    return gaussian_kl(mean, log_variance, torch.zeros_like(x0), torch.zeros_like(log_variance)).flatten(1).mean(dim=1)


def terms(
    chain: Chain,
    x0: Tensor,
    x: Tensor,
    t: Tensor,
    predicted: Tensor,
    kind: str,
    v: Tensor | None = None,
    *,
    levels: bool = True,
) -> Tensor:
    """Return a term of the bound for each of B images.

    Args:
        chain: The noise schedule.
        x0: Images, (B, C, H, W), of 256 levels in [-1, 1] where t is 0.
        x: The images with noise of their timesteps.
        t: Timesteps, (B,).
        predicted: x0 as the network predicts it.
        kind: How the variance of p is chosen, see `Chain.log_variance`.
        v: The network's second half where it is learned.
        levels: Whether images have 256 levels; else L_0 is that of a density.

    Returns:
        L_t, or L_0 where t is 0: nats per dimension, (B,).

    Raises:
        LdmrtError: The kind of variance is unknown.
    """
    mean, log_variance = chain.posterior_mean(predicted, x, t), chain.log_variance(kind, t, v)
    true = chain.posterior_mean(x0, x, t)
    posterior = chain.log_variance("fixed_small", t)
    kl = gaussian_kl(true, posterior, mean, log_variance).flatten(1).mean(dim=1)
    likelihood = level_log_likelihood if levels else density_log_likelihood
    first = -likelihood(x0, mean, log_variance).flatten(1).mean(dim=1)
    return torch.where(t == 0, first, kl)


def hybrid_losses(
    chain: Chain, prediction: str, x0: Tensor, x: Tensor, t: Tensor, predicted: Tensor, v: Tensor
) -> Tensor:
    """Return the part of L_hybrid that teaches the variance (Nichol & Dhariwal 2021, equation 16): 0.001 T L_t in bits.

    The prediction itself gets no gradient from it.

    Args:
        chain: The noise schedule, of T timesteps.
        prediction: What the network predicts, a key of `SEEN`.
        x0: Images, (B, C, H, W), of 256 levels in [-1, 1].
        x: The images with noise of their timesteps.
        t: Timesteps, (B,).
        predicted: The first half of the network's output.
        v: Its second half, which chooses the variance, see `Chain.log_variance`.

    Returns:
        A number for each image, (B,), float64.
    """
    abar = chain.abar[t][:, None, None, None]
    seen = SEEN[prediction](abar.sqrt(), (1 - abar).sqrt(), x.double(), predicted.detach().double())
    found = terms(chain, x0.double(), x.double(), t, seen, "learned_range", v.double())
    return VLB_WEIGHT * len(chain.abar) * bits(found)


def chain_of(scheduler: Config) -> tuple[Chain, str, str]:
    """Return the chain of a scheduler whose bound can be computed, its prediction type and its kind of variance.

    Raises:
        LdmrtError: The prediction type or the kind of variance is unknown or does not fit the noise schedule.
    """
    named, prediction = scheduler.get("variance_type"), scheduler.get("prediction_type", "epsilon")
    if prediction not in SEEN:
        raise LdmrtError("bound", "unsupported prediction_type", expected=", ".join(SEEN), found=prediction)
    kind = SAME.get(named, named)
    if kind not in KINDS:
        raise LdmrtError("bound", "unsupported variance", expected=", ".join(KINDS), found=kind)
    chain = Chain.of(scheduler)
    if len(chain.abar) < 2:
        raise LdmrtError("bound", "too few timesteps", expected="at least 2", found=len(chain.abar))
    check_epsilon(prediction, float(chain.abar[-1]))
    return chain, prediction, kind


@torch.no_grad()
def bound_of(
    network: Network, x0: Tensor, scheduler: Config, *, seed: int = 0, first: int = 0, levels: bool = True
) -> tuple[Tensor, Tensor]:
    """Estimate all terms of the bound of images under a network, each from one draw of noise.

    Args:
        network: Predicts what the scheduler's prediction type says, of noised images and their timesteps; twice the
            channels where the scheduler's variance is "learned_range".
        x0: Images, (B, C, H, W), of 256 levels in [-1, 1]; or latents.
        scheduler: A scheduler's config: noise schedule, prediction type and variance type.
        seed: Of the noise.
        first: Image i has the draws of sample `first` + i.
        levels: Whether images have 256 levels; else the bound is that of a density, as for latents.

    Returns:
        L_T, (B,), and L_0, L_1 to L_{T-1}, (B, T); nats per dimension. Their sum is the bound.

    Raises:
        LdmrtError: The prediction type or the kind of variance is unknown or does not fit the noise schedule or the
            network.
    """
    chain, prediction, kind = chain_of(scheduler)
    channels = x0.shape[1] * (2 if kind == "learned_range" else 1)
    draws, found, images = Draws(seed, range(first, first + len(x0))), list[Tensor](), x0.double().cpu()
    for step in range(len(chain.abar)):
        t = torch.full((len(x0),), step)
        alpha, sigma = chain.abar[step].sqrt(), (1 - chain.abar[step]).sqrt()
        x = alpha * images + sigma * draws.normal(f"bound {step}", images.shape[1:])
        said = network(x.to(x0), t.to(x0.device)).double().cpu()
        if said.shape[1] != channels:
            problem = f"the network predicts another number of channels than variance_type {kind} asks for"
            raise LdmrtError("bound", problem, expected=channels, found=said.shape[1])
        mean, v = said.chunk(2, dim=1) if kind == "learned_range" else (said, None)
        seen = SEEN[prediction](alpha, sigma, x, mean)
        found.append(terms(chain, images, x, t, seen, kind, v, levels=levels))
    return prior(chain, images), torch.stack(found, dim=1)


def bits(nats: Tensor) -> Tensor:
    """Return nats as bits."""
    return nats / math.log(2)


def _each(values: Tensor, like: Tensor) -> Tensor:
    """Return one value for each image, (B,), so that it multiplies images (B, ...)."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))
