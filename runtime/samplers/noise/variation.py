"""Mix the first noise of two seeds: variations of one image, as AUTOMATIC1111's "variation seed" draws them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .sources import NoiseSource, Shape

PARALLEL = 0.9995  # the mean cosine from which the web UI mixes linearly
LEAST_SINE = 1e-6  # below it two columns have one direction, and the formula would divide by zero

Drawn = NDArray[np.float32]


@dataclass(frozen=True)
class VariedNoise:
    """Draws noise whose first latents are turned towards those of other seeds.

    Attributes:
        source: Draws for every image by its seed.
        other: Draws the first latents of the variation seeds.
        strength: How far they are turned, 0 to 1.
        first: The stream of the first latents.
    """

    source: NoiseSource
    other: NoiseSource
    strength: float
    first: int

    def __call__(self, stream: int, shape: Shape, into: Drawn | None = None) -> Drawn:
        """Draw the noise of a stream, (images, *shape), float32."""
        if stream != self.first:
            return self.source(stream, shape, into)
        return written(varied(self.strength, self.source(stream, shape), self.other(stream, shape)), into)


def written(drawn: Drawn, into: Drawn | None) -> Drawn:
    """Write noise into an array where there is one, and return the array; else return the noise."""
    if into is None:
        return drawn
    into[...] = drawn
    return into


def varied(strength: float, low: Drawn, high: Drawn) -> Drawn:
    """Turn noise towards another, column by column: `slerp` in `modules/rng.py` of AUTOMATIC1111's web UI 1.10.

    Args:
        strength: 0 is `low`, 1 is `high`.
        low: (images, C, h, w), float32.
        high: The same.

    Returns:
        (images, C, h, w), float32.
    """
    return np.stack([_turned(strength, one, other) for one, other in zip(low, high, strict=True)])


def _turned(strength: float, low: Drawn, high: Drawn) -> Drawn:
    """Turn the noise of one image, (C, h, w); the web UI, which has no axis of images here, takes norms along h."""
    share = np.float32(strength)
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (low, high)]
    cosine = (unit[0] * unit[1]).sum(1, keepdims=True)
    if cosine.mean() > PARALLEL:
        mixed: Drawn = low * share + high * (1 - share)  # as it stands there; the two are as good as equal
        return mixed
    angle = np.arccos(np.clip(cosine, -1, 1))
    sine = np.sin(angle)
    flat = sine < LEAST_SINE
    divisor = np.where(flat, np.float32(1), sine)
    parts = np.sin((1 - share) * angle) / divisor, np.sin(share * angle) / divisor
    turned: Drawn = np.where(flat, 1 - share, parts[0]) * low + np.where(flat, share, parts[1]) * high
    return turned.astype(np.float32, copy=False)


def slerp(share: float, low: Drawn, high: Drawn) -> Drawn:
    """Turn the noise of each image as one vector, so that its length stays that of noise (Shoemake 1985).

    Args:
        share: 0 is `low`, 1 is `high`.
        low: (images, ...), float32.
        high: The same.

    Returns:
        (images, ...), float32.
    """
    out = np.empty_like(low)
    for one, other, into in zip(low.astype(np.float64), high.astype(np.float64), out, strict=True):
        cosine = float((one * other).sum() / (np.linalg.norm(one) * np.linalg.norm(other)))
        if abs(cosine) > PARALLEL:
            into[...] = (1 - share) * one + share * other
            continue
        angle = np.arccos(cosine)
        into[...] = (np.sin((1 - share) * angle) * one + np.sin(share * angle) * other) / np.sin(angle)
    return out
