"""Draw what `torch.randn` draws on CUDA, and AUTOMATIC1111's web UI with "NV" as its source of random numbers.

Both are Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by the seed, with a
counter for each number and each call. Of its four words the first two make a number, by Box and Muller's sine.

The words are those of a GPU to the bit. What follows them is not: cuRAND takes sine and logarithm from the GPU's fast
units. With `TorchCuda`, the numbers are within 5e-6 of a GPU's.
"""

import math

import numpy as np
from numpy.typing import NDArray

from .float32 import Floats

Words = NDArray[np.uint64]
_MULTIPLIERS, _WEYL, _ROUNDS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 10
_LOW = np.uint64(0xFFFFFFFF)
_F = np.float32
_UNIT = 2.3283064e-10  # 2**-32, as it stands in curand_normal.h
_TURN = 2.3283064e-10 * 6.2831855


def philox(seed: int, call: int, count: int) -> Words:
    """Return the words of a call, (4, count), 32 bits each: those of counters (call, 0, 0 .. count - 1, 0).

    Args:
        seed: The key, 0 to 2**64 - 1.
        call: How many calls were made before.
        count: How many counters.
    """
    words = [np.full(count, call, np.uint64), *(np.zeros(count, np.uint64) for _ in range(3))]
    words[2] = np.arange(count, dtype=np.uint64)
    keys = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(_ROUNDS):
        first, second = (word * np.uint64(by) for word, by in zip(words[::2], _MULTIPLIERS, strict=True))
        high = [product >> np.uint64(32) for product in (second, first)]
        mixed = [each ^ word ^ np.uint64(key) for each, word, key in zip(high, words[1::2], keys, strict=True)]
        words = [mixed[0], second & _LOW, mixed[1], first & _LOW]
        keys = [(key + by) & 0xFFFFFFFF for key, by in zip(keys, _WEYL, strict=True)]
    return np.stack(words)


class TorchCuda:
    """Draws as `torch.Generator("cuda").manual_seed(seed)` does, up to 40960 numbers a call alike on every GPU.

    A call is shared by as many threads as the GPU runs at once, each of which draws one number, or up to four where
    there are more numbers than threads: 40960 on a T4, which has 40 multiprocessors, 196608 on an RTX 4090. Here a call
    is drawn as by a GPU that has a thread for each number.

    Args:
        seed: 0 to 2**64 - 1.
    """

    def __init__(self, seed: int) -> None:
        """Begin the stream of a seed."""
        self._seed, self._calls = seed, 0

    def randn(self, shape: tuple[int, ...]) -> Floats:
        """Draw unit noise of a shape, float32."""
        words = philox(self._seed, self._calls, math.prod(shape)).astype(np.float32)
        self._calls += 1
        u, v = (word * _F(by) + _F(_F(by) / 2) for word, by in zip(words[:2], (_UNIT, _TURN), strict=True))
        radius = np.sqrt(-2.0 * np.log(u.astype(np.float64)))
        noise: Floats = (radius * np.sin(v.astype(np.float64))).astype(np.float32).reshape(shape)
        return noise


class A1111:
    """Draws as the web UI's own Philox does, `modules/rng_philox.py` of version 1.6 and later, for any count.

    Args:
        seed: 0 to 2**64 - 1.
    """

    def __init__(self, seed: int) -> None:
        """Begin the stream of a seed."""
        self._seed, self._calls = seed, 0

    def randn(self, shape: tuple[int, ...]) -> Floats:
        """Draw unit noise of a shape, float32 of numbers that are computed in float64."""
        words = philox(self._seed, self._calls, math.prod(shape)).astype(np.float64)
        self._calls += 1
        scales = (float(_F(_UNIT)), float(_F(_TURN)))
        halves = (float(_F(scale) / _F(2)) for scale in scales)
        u, v = (word * scale + half for word, scale, half in zip(words[:2], scales, halves, strict=True))
        noise: Floats = (np.sqrt(-2.0 * np.log(u)) * np.sin(v)).astype(np.float32).reshape(shape)
        return noise
