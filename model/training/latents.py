"""Turn images into tensors, and into the moments of their latents, computed once for each image."""

import numpy as np
import torch
from torch import Tensor

from ldmrt.model.networks.autoencoder import Autoencoder, moments

from .data.captioned import Key, Pixels, Sample
from .draws import Draws


def to_tensor(images: list[Pixels], device: str) -> Tensor:
    """Stack B images (H, W, 3), uint8, to a float32 tensor (B, 3, H, W) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return stacked.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def encoded(vae: Autoencoder, images: Tensor) -> Tensor:
    """Return mean and log-variance (B, 2C, h, w) of the latents of B images (B, 3, H, W) in [-1, 1], in float32.

    They are encoded one by one: the bits of a sum depend on the size of the batch.
    """
    with torch.autocast(images.device.type, enabled=False):
        return torch.cat([vae.encode(image) for image in images.split(1)])


def sampled(encoded: Tensor, vae: Autoencoder, draws: Draws, purpose: str = "latents") -> Tensor:
    """Draw latents (B, C, h, w) of moments (B, 2C, h, w), scaled as a diffusion model takes them."""
    mean, log_variance = moments(encoded)
    latents = mean + torch.exp(0.5 * log_variance) * draws.normal(purpose, mean.shape[1:])
    return latents * vae.config.scaling_factor


def to_images(x: Tensor) -> Pixels:
    """Turn images (B, 3, H, W) in [-1, 1] into (B, H, W, 3), uint8: the inverse of `to_tensor`."""
    pixels: Pixels = ((x.float() + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels


class LatentCache:
    """Keeps the autoencoder's moments by sample key: a repeated image is neither decoded nor encoded again."""

    def __init__(self, vae: Autoencoder, device: str, *, entries: int = 50_000) -> None:
        """Start empty; of more than `entries` images the first ones stay."""
        self.vae, self.device, self.entries = vae, device, entries
        self.known: dict[Key, Tensor] = {}

    def lacks(self, sample: Sample) -> bool:
        """Tell whether the image of a sample has to be decoded for its latents."""
        return sample.key not in self.known

    def __call__(self, samples: list[Sample]) -> Tensor:
        """Return mean and log-variance (B, 2C, h, w) of the latents of B samples' images."""
        missing = {sample.key: sample for sample in samples if sample.key not in self.known}
        found = {sample.key: self.known[sample.key] for sample in samples if sample.key in self.known}
        for key, sample in missing.items():
            found[key] = encoded(self.vae, to_tensor([sample.image], self.device))[0]
            if not sample.once and len(self.known) < self.entries:
                self.known[key] = found[key]
        return torch.stack([found[sample.key] for sample in samples])
