"""Pictures as tensors, and the moments of their latents, computed once for each picture."""

import numpy as np
import torch
from torch import Tensor

from ldmrt.model.networks.autoencoder import Autoencoder

from .data import Sample


def to_tensor(pictures: list[np.ndarray], device: str) -> Tensor:
    """uint8 pictures (H, W, 3) -> (B, 3, H, W) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return stacked.contiguous(memory_format=torch.channels_last)


class LatentCache:
    """Moments of the autoencoder by sample key: a picture that comes again is neither decoded nor encoded again."""

    def __init__(self, vae: Autoencoder, device: str, *, entries: int = 50_000) -> None:
        self.vae, self.device, self.entries = vae, device, entries
        self.known: dict[tuple, Tensor] = {}

    def lacks(self, sample: Sample) -> bool:
        """Whether the picture of a sample has to be decoded for its latents."""
        return sample.key not in self.known

    @torch.no_grad()
    def __call__(self, samples: list[Sample]) -> Tensor:
        """(B, 2C, h, w) of the samples' pictures."""
        missing = {sample.key: sample for sample in samples if sample.key not in self.known}
        found = {sample.key: self.known[sample.key] for sample in samples if sample.key in self.known}
        with torch.autocast(self.device, enabled=False):
            for key, sample in missing.items():  # one by one: the bits of a sum depend on the size of the batch
                found[key] = self.vae.encode(to_tensor([sample.picture], self.device))[0]
                if len(self.known) < self.entries:
                    self.known[key] = found[key]
        return torch.stack([found[sample.key] for sample in samples])
