"""Report how well an autoencoder keeps images, and how its latents are distributed."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmrt.model.networks.autoencoder import Autoencoder, moments
from ldmrt.model.networks.vq_autoencoder import VQAutoencoder

from .quantise import perplexity

LN2 = math.log(2)
ACTIVE = 0.01  # nats: a dimension of the latents with less carries nothing (Burda et al. 2016, in kind)
SIDE = 7  # of SSIM's window, as in scikit-image


@dataclass(frozen=True)
class Report:
    """Holds what was measured; the fields of the other kind of autoencoder are None.

    Attributes:
        images: How many images were measured.
        psnr: Peak signal-to-noise ratio in dB, of the mean squared error over all images.
        ssim: Structural similarity, the mean over images.
        l1: Mean absolute error of images in [-1, 1].
        mean: Mean of the latents.
        deviation: Their standard deviation.
        bits_a_latent: KL to the prior in bits, the mean over latents.
        bits_an_image: KL to the prior in bits, the mean over images.
        active: Dimensions of an image's latents whose mean KL is above 0.01 nats.
        perplexity: Codes in use, in effect.
    """

    images: int
    psnr: float
    ssim: float
    l1: float
    mean: float
    deviation: float
    bits_a_latent: float | None = None
    bits_an_image: float | None = None
    active: int | None = None
    perplexity: float | None = None

    @property
    def scaling_factor(self) -> float:
        """The factor that gives latents unit deviation (Rombach et al. 2022, appendix G)."""
        return 1.0 / self.deviation

    def __str__(self) -> str:
        """Describe it in one line."""
        parts = [f"PSNR {self.psnr:.2f} dB", f"SSIM {self.ssim:.4f}", f"L1 {self.l1:.4f}"]
        if self.bits_a_latent is not None:
            parts += [f"KL {self.bits_a_latent:.2f} bits a latent, {self.bits_an_image:.0f} an image"]
            parts += [f"{self.active} active dimensions"]
        if self.perplexity is not None:
            parts += [f"code perplexity {self.perplexity:.1f}"]
        return ", ".join([*parts, f"latents {self.mean:.3f} +- {self.deviation:.3f}"])


def ssim(first: Tensor, second: Tensor, data_range: float) -> Tensor:
    """Return the structural similarity of B pairs of images (B, C, H, W), (B,), in float64 (Wang et al. 2004).

    As scikit-image computes it by default: uniform windows of 7 pixels, sample variances, no borders.
    """
    first, second = first.double(), second.double()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    unbiased = SIDE**2 / (SIDE**2 - 1)
    mean, other = F.avg_pool2d(first, SIDE, 1), F.avg_pool2d(second, SIDE, 1)
    variance = unbiased * (F.avg_pool2d(first * first, SIDE, 1) - mean * mean)
    other_variance = unbiased * (F.avg_pool2d(second * second, SIDE, 1) - other * other)
    covariance = unbiased * (F.avg_pool2d(first * second, SIDE, 1) - mean * other)
    above = (2 * mean * other + c1) * (2 * covariance + c2)
    below = (mean.square() + other.square() + c1) * (variance + other_variance + c2)
    return (above / below).flatten(1).mean(dim=1)


@torch.no_grad()
def report(vae: Autoencoder | VQAutoencoder, batches: Iterable[Tensor]) -> Report:
    """Measure an autoencoder on images, through the means of their latents.

    Args:
        vae: The autoencoder, in eval mode.
        batches: Images (B, 3, H, W) in [-1, 1], with sides of 7 and more, all of one size; at least one batch.
    """
    count, values, total, squares = 0, 0, 0.0, 0.0
    sums = torch.zeros(3, dtype=torch.float64)  # squared errors, SSIM, absolute errors, each a mean over an image
    kl: Tensor | None = None  # nats of each dimension, summed over images
    codes = torch.zeros(0)
    for x in batches:
        if isinstance(vae, Autoencoder):
            latents, log_variance = moments(vae.encode(x))
            nats = 0.5 * (latents.square() + log_variance.exp() - 1.0 - log_variance).double().sum(dim=0).cpu()
            kl = nats if kl is None else kl + nats
        else:
            latents = vae.encode(x)
            used = vae.quantize.codes(latents).flatten().cpu()
            counts = torch.bincount(used, minlength=vae.config.num_vq_embeddings)
            codes = counts if not len(codes) else codes + counts
        back = vae.decode(latents).clamp(-1, 1)
        error = (back - x).double().flatten(1)
        each = [error.square().mean(dim=1), ssim(back, x, 2.0), error.abs().mean(dim=1)]
        sums += torch.stack([value.sum().cpu() for value in each])
        wide = latents.double()
        count, values = count + len(x), values + wide.numel()
        total, squares = total + wide.sum().item(), squares + wide.square().sum().item()
    mean = total / values
    variance = (squares - values * mean**2) / max(1, values - 1)
    square, similarity, absolute = (sums / count).tolist()
    psnr = -10 * torch.tensor(square / 4, dtype=torch.float64).log10().item()
    common = (count, psnr, similarity, absolute, mean, variance**0.5)
    if kl is None:
        return Report(*common, perplexity=perplexity(codes))
    nats = kl / count
    bits = nats.sum().item() / LN2
    return Report(*common, bits / nats.numel(), bits, int((nats > ACTIVE).sum()))
