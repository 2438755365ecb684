"""Counter-based noise: a number depends on seed, row and place alone, so no order of drawing can change an image.

Philox4x64 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by (seed, row).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import InvalidRequest

FIRST = 0  # the stream of the first latents; row r of the sampler draws from stream r + 1
# Streams for encoding an image to start from, and the part that its mask leaves; and the noise on a small image.
IMAGE, MASKED, NOISED = 2**63, 2**63 + 1, 2**63 + 2
STAGE = 2**40  # from the streams of a stage of a cascade to those of the next


def of_stage(stream: int, stage: int) -> int:
    """Return the stream of a stage of a cascade; those of the first, 0, are the streams themselves."""
    return stream + stage * STAGE


def noise(
    seeds: Sequence[int],
    stream: int,
    shape: tuple[int, ...],
    into: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Draw unit noise, one array for each seed.

    Args:
        seeds: Seeds of the images, 0 to 2**64 - 1.
        stream: Which of a seed's independent streams to draw from: `FIRST`, `IMAGE`, `MASKED`, `NOISED`, or row + 1.
        shape: Shape of the noise of one image, (C, h, w).
        into: Where to write it, (len(seeds), C, h, w); a new array where it is None.

    Returns:
        Normal numbers of mean 0 and variance 1, (len(seeds), C, h, w), float32.

    Raises:
        InvalidRequest: A seed is out of range.
    """
    out = np.empty((len(seeds), *shape), np.float32) if into is None else into
    for image_noise, seed in zip(out, seeds, strict=True):
        if not 0 <= seed < 2**64:
            raise InvalidRequest("noise", "invalid seed", expected="0 to 2**64 - 1", found=seed)
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, stream], np.uint64)))
        generator.standard_normal(out=image_noise, dtype=np.float32)
    return out
