"""Compute features of images, which scores compare: an autoencoder's latents, or a network's of one's own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.backends.ort.engine import OrtEngine
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.errors import LdmrtError, first_line

Extractor = Callable[[NDArray[np.uint8]], NDArray[np.float64]]  # images (N, H, W, 3) to features (N, d)
CELLS = 4  # along a side, that latents are averaged to


def latent_features(bundle: Path, threads: int = 0) -> Extractor:
    """Return features by a bundle's autoencoder: the means of its latents, averaged over at most 4x4 cells.

    Raises:
        LdmrtError: The bundle has no encoder.
    """
    opened = Bundle.open(bundle, check=False)
    if "vae_encoder" not in opened.components:
        hint = "--features FILE.pt, a network as TorchScript, or --measure memorisation"
        raise LdmrtError("evaluate", "this bundle has no autoencoder to compute features with", hint=hint)
    encoder = OrtEngine("vae_encoder", opened.model("vae_encoder"), threads=threads)
    channels = opened.stage.space.channels

    def extract(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        output = encoder(sample=scaled(images))["latent_parameters"]
        return pooled(output[:, :channels].astype(np.float64))

    return extract


def network_features(path: Path) -> Extractor:
    """Return features by a network that is handed in as TorchScript.

    Args:
        path: The file. The network takes images (N, 3, H, W) in [-1, 1] and returns features (N, ...).

    Raises:
        LdmrtError: The file is missing or holds no such network; also from calling what is returned.
    """
    import torch

    if not path.is_file():
        raise LdmrtError("--features", f"no file {path}")
    try:
        network = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        problem = f"cannot read {path}"
        raise LdmrtError("--features", problem, expected="TorchScript", found=first_line(error)) from None

    def extract(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        try:
            with torch.no_grad():
                output = network(torch.from_numpy(scaled(images)))
            return np.asarray(output.double().reshape(len(images), -1).numpy())
        except (RuntimeError, AttributeError, TypeError) as error:
            found = first_line(error)
            problem, expected = "the network gives no features of these images", "a tensor (N, ...)"
            raise LdmrtError("--features", problem, expected=expected, found=found) from None

    return extract


def scaled(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return images (N, H, W, 3), uint8, as (N, 3, H, W) in [-1, 1]."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / 127.5 - 1


def pooled(latents: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average latents (N, C, h, w) over at most 4x4 cells of nearly equal size, and flatten them to (N, d)."""
    for axis in (2, 3):
        length = latents.shape[axis]
        parts = np.array_split(np.arange(length), min(CELLS, length))
        latents = np.stack([latents.take(part, axis=axis).mean(axis=axis) for part in parts], axis=axis)
    return latents.reshape(len(latents), -1)
