"""Turn images into tensors, and into what an autoencoder encodes them as, computed once for each image."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ldmrt.model.networks.autoencoder import Autoencoder, moments
from ldmrt.model.networks.vq_autoencoder import VQAutoencoder
from ldmrt.runtime.errors import LdmrtError

from .data.captioned import Key, Pixels, Sample
from .draws import Draws
from .latent_files import LatentFiles

Fingerprint = Callable[[Sample], str]
FirstStage = Autoencoder | VQAutoencoder


def to_tensor(images: list[Pixels], device: str) -> Tensor:
    """Stack B images (H, W, 3), uint8, to a float32 tensor (B, 3, H, W) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return stacked.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def encoded(vae: FirstStage, images: Tensor) -> Tensor:
    """Encode B images (B, 3, H, W) in [-1, 1], in float32.

    Returns mean and log-variance (B, 2C, h, w) of the latents; or latents (B, C, h, w) before the codebook.
    They are encoded one by one: the bits of a sum depend on the size of the batch.
    """
    with torch.autocast(images.device.type, enabled=False):
        return torch.cat([vae.encode(image) for image in images.split(1)])


def sampled(encoded: Tensor, vae: FirstStage, draws: Draws, purpose: str = "latents") -> Tensor:
    """Draw latents (B, C, h, w) of moments (B, 2C, h, w), shifted and scaled as a diffusion model takes them.

    Those of an autoencoder with a codebook are given already, and nothing is drawn.
    """
    if isinstance(vae, VQAutoencoder):
        return encoded * vae.config.scaling_factor
    mean, log_variance = moments(encoded)
    latents = mean + torch.exp(0.5 * log_variance) * draws.normal(purpose, mean.shape[1:])
    return (latents - (vae.config.shift_factor or 0)) * vae.config.scaling_factor


def to_images(x: Tensor) -> Pixels:
    """Turn images (B, 3, H, W) in [-1, 1] into (B, H, W, 3), uint8: the inverse of `to_tensor`."""
    pixels: Pixels = ((x.float() + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels


class LatentCache:
    """Keeps moments, or latents before a codebook, by sample key: a repeated image is not encoded again."""

    def __init__(
        self,
        vae: FirstStage,
        device: str,
        *,
        entries: int = 50_000,
        dtype: torch.dtype = torch.float32,
        files: LatentFiles | None = None,
        fingerprint: Fingerprint | None = None,
    ) -> None:
        """Start empty, or with the moments in `files`.

        Args:
            vae: The autoencoder.
            device: The device that it is on.
            entries: How many moments stay in memory: the first ones; all where there are files.
            dtype: What moments are rounded to.
            files: Keeps moments on the disk; None for memory alone.
            fingerprint: Names the image of a sample in these files by all that its pixels depend on.
        """
        self.vae, self.device, self.entries, self.dtype = vae, device, entries, dtype
        self.files, self.fingerprint = files, fingerprint
        self.known: dict[Key, Tensor] = {}
        self._names: dict[Key, str] = {}

    def lacks(self, sample: Sample) -> bool:
        """Tell whether the image of a sample has to be decoded for its latents."""
        if self.files is None or sample.once:
            return sample.key not in self.known
        try:
            return self._name(sample) not in self.files
        except (OSError, LdmrtError):  # decoding it gives the error that names it
            return True

    def _name(self, sample: Sample) -> str:
        """Return the name of a sample's moments in the files."""
        assert self.fingerprint is not None
        if sample.key not in self._names:
            self._names[sample.key] = self.fingerprint(sample)
        return self._names[sample.key]

    def __call__(self, samples: list[Sample]) -> Tensor:
        """Return what `encoded` returns of B samples' images, float32."""
        found = {}
        for key, sample in {sample.key: sample for sample in samples}.items():
            kept = self._kept(sample)
            found[key] = self._encode(sample) if kept is None else kept.to(self.device)
        return torch.stack([found[sample.key].float() for sample in samples])

    def _kept(self, sample: Sample) -> Tensor | None:
        """Return moments that were computed before."""
        if self.files is None or sample.once:
            return self.known.get(sample.key)
        return self.files.get(self._name(sample))

    def _encode(self, sample: Sample) -> Tensor:
        """Compute the moments of one sample, and keep them."""
        computed = encoded(self.vae, to_tensor([sample.image], self.device))[0].to(self.dtype)
        if self.files is not None and not sample.once:
            self.files.add(self._name(sample), computed)
        elif not sample.once and len(self.known) < self.entries:
            self.known[sample.key] = computed
        return computed
