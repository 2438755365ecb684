"""Measure the difference of tensors and the similarity of images, as a certificate states them."""

import math

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.bundle.certificate import ImageSimilarity, TensorError
from ldmrt.runtime.tensors import Array

OFF = 2  # grey levels: a difference that nobody sees


def tensor_error(
    component: str, backend: str, case: str, output: str, found: Array, expected: Array, limit: float
) -> TensorError:
    """Measure `found` against `expected`, in float64; another shape is infinitely far."""
    if found.shape != expected.shape:
        return TensorError(component, backend, case, output, math.inf, math.inf, math.inf, math.nan, limit)
    a, b = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    apart = np.abs(a - b)
    largest, size = float(apart.max()), float(np.abs(b).max())
    relative = largest / size if size else (0.0 if largest == 0 else math.inf)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / norms if norms else 1.0
    return TensorError(component, backend, case, output, largest, float(apart.mean()), relative, cosine, limit)


def image_similarity(
    backend: str, prompt: str, seed: int, found: NDArray[np.uint8], expected: NDArray[np.uint8], limit: float
) -> ImageSimilarity:
    """Measure an image (H, W, 3) against the reference's."""
    apart = np.abs(found.astype(np.float64) - expected)
    off = float((apart.max(axis=-1) > OFF).mean())
    return ImageSimilarity(backend, prompt, seed, psnr(found, expected), ssim(found, expected), off, limit)


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio of two uint8 images in dB; infinite where they are equal."""
    return psnr_of(float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)))


def psnr_of(error: float) -> float:
    """Return the peak signal-to-noise ratio in dB of a mean squared error of uint8; infinite where it is 0."""
    return math.inf if error == 0 else float(10 * np.log10(255.0**2 / error))


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float | None:
    """Return the structural similarity (Wang et al. 2004) by scikit-image, where it is installed."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        return None
    similarity = structural_similarity(a, b, channel_axis=-1, data_range=255)  # type: ignore[no-untyped-call]
    return float(similarity)
