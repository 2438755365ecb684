"""Resize images and latents in NumPy as torch.nn.functional.interpolate does.

Each method is a few samples of every row and column, weighted.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Samples = tuple[NDArray[np.int64], NDArray[np.float32]]  # of each new place: the old ones, and their weights
CUBIC = -0.5  # the parameter of Keys' kernel (Keys 1981), as where PyTorch and Pillow antialias
SHARP = -0.75  # as where PyTorch does not


def resize(images: NDArray[np.float32], size: tuple[int, int], method: str) -> NDArray[np.float32]:
    """Resize images, or latents.

    Args:
        images: (B, C, H, W).
        size: The new height and width.
        method: One of `METHODS`; "bicubic" antialiases where the image becomes smaller.

    Returns:
        (B, C, height, width).
    """
    samples = METHODS[method]
    for axis, new in ((2, size[0]), (3, size[1])):
        places, weights = samples(images.shape[axis], new)
        shape = [1] * 4
        shape[axis] = new
        parts = (
            images.take(column, axis) * weight.reshape(shape)
            for column, weight in zip(places.T, weights.T, strict=True)
        )
        images = sum(parts, np.float32(0))
    return np.ascontiguousarray(images)


def _nearest(old: int, new: int) -> Samples:
    places = np.floor(np.arange(new, dtype=np.float32) * np.float32(old / new)).astype(np.int64)  # in float32, as torch
    return np.minimum(places, old - 1)[:, None], np.ones((new, 1), np.float32)


def _nearest_exact(old: int, new: int) -> Samples:
    """Return the pixel that the middle of each new one lies in."""
    places = np.floor((np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new)).astype(np.int64)
    return np.minimum(places, old - 1)[:, None], np.ones((new, 1), np.float32)


def _bilinear(old: int, new: int) -> Samples:
    return _between(np.maximum((np.arange(new, dtype=np.float64) + 0.5) * (old / new) - 0.5, 0), old)


def _bilinear_aligned(old: int, new: int) -> Samples:
    return _between(np.arange(new, dtype=np.float64) * ((old - 1) / (new - 1) if new > 1 else 0.0), old)


def _between(at: NDArray[np.float64], old: int) -> Samples:
    """Return the two samples around each place."""
    first = np.minimum(at.astype(np.int64), old - 1)
    share = np.clip(at - first, 0, 1).astype(np.float32)
    places = np.stack([first, np.minimum(first + 1, old - 1)], axis=1)
    return places, np.stack([1 - share, share], axis=1)


def _bicubic(old: int, new: int) -> Samples:
    """Return Keys' kernel, as wide as the larger of two pixels."""
    scale = old / new
    wide = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    places = np.floor(centres - 2 * wide + 0.5).astype(np.int64)[:, None] + np.arange(int(np.ceil(4 * wide)) + 2)
    last = np.floor(centres + 2 * wide + 0.5)[:, None]
    inside = (places >= 0) & (places < np.minimum(last, old))
    weights = np.where(inside, _keys((places - centres[:, None] + 0.5) / wide), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return places.clip(0, old - 1), weights.astype(np.float32)


def _bicubic_sharp(old: int, new: int) -> Samples:
    """Return a kernel of four pixels, however much smaller the image becomes."""
    at = (np.arange(new) + 0.5) * (old / new) - 0.5
    places = np.floor(at).astype(np.int64)[:, None] + np.arange(-1, 3)
    return places.clip(0, old - 1), _keys(places - at[:, None], SHARP).astype(np.float32)


def _keys(x: NDArray[np.float64], a: float = CUBIC) -> NDArray[np.float64]:
    """Evaluate Keys' cubic kernel of a parameter, which is zero two pixels away."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


METHODS: Mapping[str, Callable[[int, int], Samples]] = {
    "nearest": _nearest,
    "nearest_exact": _nearest_exact,
    "bilinear": _bilinear,
    "bilinear_aligned": _bilinear_aligned,
    "bicubic": _bicubic,
    "bicubic_sharp": _bicubic_sharp,
}
# What enlarges between two passes of a request: latents by one of the methods, or pixels (None) with Lanczos.
UPSCALERS: Mapping[str, str | None] = {
    "latent": "bilinear",
    "latent-nearest": "nearest",
    "latent-nearest-exact": "nearest_exact",
    "latent-bicubic": "bicubic_sharp",
    "latent-bicubic-antialiased": "bicubic",
    "pixel": None,
}


@runtime_checkable
class Upscaler(Protocol):
    """A network that enlarges pixels."""

    @property
    def name(self) -> str:
        """Its name, as AUTOMATIC1111 writes it."""

    def upscale(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Enlarge an image (H, W, 3)."""


def method_of(upscaler: "str | Upscaler") -> str | None:
    """Return how an upscaler enlarges latents, one of `METHODS`; None where it enlarges pixels."""
    return UPSCALERS[upscaler] if isinstance(upscaler, str) else None
