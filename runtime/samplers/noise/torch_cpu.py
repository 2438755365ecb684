"""Draw what `torch.randn` draws with a generator of the CPU, to the bit.

The words are those of the Mersenne twister (Matsumoto & Nishimura 1998). From 16 numbers on, torch makes them by a
vectorised kernel, whose float32 is that of AVX2 (`float32.py`): what it runs on x86 processors since 2013, those with
AVX-512 too. On others, such as ARM's, and with ATEN_CPU_CAPABILITY=default, torch's own last bits differ.
"""

import math

import numpy as np

from .float32 import Floats, log, sin_cos

VECTOR = 16  # numbers that the kernel makes at once, and the fewest that it is used for
_F = np.float32


class TorchCpu:
    """Draws as `torch.Generator("cpu").manual_seed(seed)` does.

    Args:
        seed: 0 to 2**64 - 1; torch's Mersenne twister heeds its low 32 bits.
    """

    def __init__(self, seed: int) -> None:
        """Begin the stream of a seed."""
        self._twister = np.random.MT19937()
        self._twister._legacy_seeding(seed % 2**32)
        self._second: float | None = None  # of the last pair that was made one by one

    def randn(self, shape: tuple[int, ...]) -> Floats:
        """Draw unit noise of a shape, float32."""
        count = math.prod(shape)
        drawn = self._vectors(count) if count >= VECTOR else np.array([self._one() for _ in range(count)], np.float32)
        noise: Floats = drawn.reshape(shape)
        return noise

    def _vectors(self, count: int) -> Floats:
        """Draw by vectors of 16; the last 16 numbers are drawn again where they are no whole vector."""
        uniform = self._uniform(count)
        whole = count - count % VECTOR
        out: Floats = uniform.copy()
        out[:whole] = _box_muller(uniform[:whole])
        if whole < count:
            out[-VECTOR:] = _box_muller(self._uniform(VECTOR))
        return out

    def _uniform(self, count: int) -> Floats:
        """Draw multiples of 2**-24 in [0, 1), float32."""
        words = self._twister.random_raw(count) & 0xFFFFFF
        uniform: Floats = words.astype(np.float32) * _F(2**-24)
        return uniform

    def _one(self) -> float:
        """Draw one number; two are made at once, in float64, and the second waits for the next call."""
        if self._second is not None:
            second, self._second = self._second, None
            return second
        (u1, u2) = (self._float64() for _ in range(2))
        radius, angle = math.sqrt(-2.0 * math.log1p(-u2)), 2.0 * math.pi * u1
        self._second = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _float64(self) -> float:
        """Draw a multiple of 2**-53 in [0, 1)."""
        high, low = (int(word) for word in self._twister.random_raw(2))
        return (((high << 32) | low) & (2**53 - 1)) * 2.0**-53


def _box_muller(uniform: Floats) -> Floats:
    """Make normal numbers of uniform ones, (n * 16,): in every 16, 8 are radii and 8 are angles."""
    pairs = uniform.reshape(-1, 2, VECTOR // 2)
    radius = np.sqrt(_F(-2) * log(_F(1) - pairs[:, 0]))
    sine, cosine = sin_cos(_F(2 * math.pi) * pairs[:, 1])
    return np.stack([radius * cosine, radius * sine], axis=1).reshape(-1)
