"""Train a codebook: straight-through gradients, commitment, moving averages and restarts (van den Oord et al. 2017)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldmrt.model.networks.vq_autoencoder import Quantizer
from ldmrt.model.training.diffusion.error import squared_error
from ldmrt.model.training.draws import Draws

COMMITMENT = 0.25  # van den Oord et al. 2017, equation 3
DECAY = 0.99  # of the moving averages, appendix A.1
UNUSED = 0.01  # a code with fewer latents a step, on average, is restarted


@dataclass(frozen=True)
class Quantised:
    """Holds what a codebook made of latents.

    Attributes:
        latents: Codes in the place of latents, (B, width, h, w), whose gradient passes to the latents unchanged.
        loss: Of codebook and commitment, (B,).
        codes: The codes' indices, (B, h * w).
    """

    latents: Tensor
    loss: Tensor
    codes: Tensor


def quantise(
    quantizer: Quantizer, latents: Tensor, commitment: float = COMMITMENT, *, learned: bool = True
) -> Quantised:
    """Replace latents (B, width, h, w) by the nearest codes.

    Args:
        quantizer: The codebook.
        latents: The encoder's.
        commitment: The weight of the part that keeps latents near their codes.
        learned: Whether the codebook learns by gradient; otherwise the loss is the commitment alone.
    """
    codes = quantizer.codes(latents)
    nearest = quantizer.embedding(codes).transpose(1, 2).unflatten(2, latents.shape[2:])
    loss = commitment * squared_error(latents, nearest.detach())
    if learned:
        loss = loss + squared_error(nearest, latents.detach())
    return Quantised(latents + (nearest - latents).detach(), loss, codes)


def perplexity(counts: Tensor) -> float:
    """Return the exponential of the entropy of codes used `counts` (codes,) times: how many are in use, in effect."""
    share = counts.double() / counts.sum()
    return torch.special.entr(share).sum().exp().item()


class Codebook:
    """Follows the use of a codebook in training; moves codes to the mean of their latents, and restarts unused ones.

    What it remembers are buffers of the quantizer, so that the state of a run holds them: `usage` (codes,) and `sums`
    (codes, width), moving averages of how many latents a code had in a step, and of their sum. `strip` removes them.
    """

    def __init__(self, quantizer: Quantizer, seed: int, *, averaged: bool = False, restart: bool = True) -> None:
        """Add the buffers; one that is `averaged` learns by its averages alone, so `quantise` gives it no gradient."""
        self.quantizer, self.seed, self.averaged, self.restart = quantizer, seed, averaged, restart
        table = quantizer.embedding.weight
        quantizer.register_buffer("usage", torch.zeros(len(table)))
        quantizer.register_buffer("sums", torch.zeros_like(table.detach()))
        self.step = 0
        self.seen: list[tuple[Tensor, Tensor]] = []  # latents (B, n, width) and their codes (B, n), of that step

    def note(self, latents: Tensor, codes: Tensor, step: int) -> None:
        """Remember the latents (B, width, h, w) of a part of a step, and their codes (B, h * w).

        Those of another step are forgotten: it changed no weight, as its gradient was not finite.
        """
        if step != self.step:
            self.step = step
            self.seen.clear()
        self.seen.append((latents.detach().float().flatten(2).transpose(1, 2), codes))

    def share(self, step: int, joined: Callable[[Tensor | None], Tensor]) -> None:
        """Take the latents of a step from all processes, so that each updates the codes alike.

        Args:
            step: The step.
            joined: Makes a batch's values, (B, ...), of those of each process's samples, or of None.
        """
        seen, device = self.seen if step == self.step else [], self.quantizer.embedding.weight.device
        parts = [*zip(*seen, strict=True)] or [(), ()]
        own = [torch.cat(each) if each else None for each in parts]
        latents, codes = (joined(values).to(device) for values in own)
        self.step, self.seen = step, [(latents, codes)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update averages and codes after a step, which has its own random numbers."""
        latents, codes = (torch.cat(each).flatten(0, 1) for each in zip(*self.seen, strict=True))
        self.seen.clear()
        table = self.quantizer.embedding.weight
        usage, sums = self.quantizer.get_buffer("usage"), self.quantizer.get_buffer("sums")
        chosen = torch.nn.functional.one_hot(codes, len(table)).to(latents.dtype)  # (n, codes)
        usage.lerp_(chosen.sum(dim=0), 1 - DECAY)
        sums.lerp_(chosen.T @ latents, 1 - DECAY)
        if self.averaged:
            used = usage > 0
            table[used] = sums[used] / usage[used, None]
        if self.restart:
            unused = (usage < UNUSED * (1 - DECAY ** (step + 1))).nonzero().flatten()
            if len(unused):
                places = [step * len(table) + code for code in unused.tolist()]
                draws = Draws(self.seed, places, str(latents.device), stream="codebook")
                fresh = latents[draws.integers("restart", len(latents))]
                table[unused], sums[unused], usage[unused] = fresh, fresh, 1.0


def strip(quantizer: Quantizer) -> Quantizer:
    """Remove the buffers of `Codebook`, which no checkpoint has; returns the same object."""
    for name in ("usage", "sums"):
        if hasattr(quantizer, name):
            delattr(quantizer, name)
    return quantizer
