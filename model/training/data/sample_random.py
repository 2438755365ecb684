"""Make the random numbers of one sample of a stream, which depend on nothing but its place and what they are for."""

import hashlib

import numpy as np


def sample_generator(seed: int, index: int, purpose: str) -> np.random.Generator:
    """Return a counter-based generator (Philox: Salmon et al. 2011) for one purpose of sample `index`."""
    stream = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    key = np.array([seed, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, index, 0]))
