"""Encode and decode images with a bundle's autoencoder."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.bundle.bundle import Bundle

BATCH = 10  # images per call


def reconstructed(bundle: Path, pictures: NDArray[np.uint8], threads: int = 0) -> NDArray[np.float32]:
    """Encode and decode images with a bundle's autoencoder; the encoder's mean is decoded.

    Args:
        bundle: The bundle.
        pictures: (N, H, W, 3), uint8.
        threads: CPU threads of ONNX Runtime; 0 takes one per core.

    Returns:
        (N, H, W, 3), levels from 0 to 255 that are not rounded.
    """
    opened = Bundle.open(bundle, check=False)
    names = ("vae_encoder", "vae_decoder")
    encoder, decoder = (OrtEngine(name, opened.model(name), threads=threads) for name in names)
    decoded = list[NDArray[np.float32]]()
    for i in range(0, len(pictures), BATCH):
        x = pictures[i : i + BATCH].transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        mean = encoder(sample=x)["latent_parameters"][:, : opened.stage.space.channels]
        decoded.append(decoder(latent_sample=mean)["sample"])
    return (np.concatenate(decoded).clip(-1, 1).transpose(0, 2, 3, 1) + 1) * 127.5
