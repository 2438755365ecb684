"""Counter-based noise: a number depends on seed, row and place alone, so no order of drawing can change an image.

Philox4x64 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by (seed, row).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError

FIRST = 0  # the stream of the first latents; row r of the sampler draws from stream r + 1
IMAGE, MASKED = 2**63, 2**63 + 1  # of the latents of an image to start from, and of what its mask leaves


def noise(
    seeds: Sequence[int], stream: int, shape: tuple[int, ...], into: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Unit noise, one image a seed, in `into` where it is given: (len(seeds), *shape)."""
    out = np.empty((len(seeds), *shape), np.float32) if into is None else into
    for picture, seed in zip(out, seeds, strict=True):
        if not 0 <= seed < 2**64:
            raise LdmrtError("noise", "invalid seed", expected="0 to 2**64 - 1", found=seed)
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, stream], np.uint64)))
        generator.standard_normal(out=picture, dtype=np.float32)
    return out
