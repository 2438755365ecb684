"""Where the tensors of one call lie in one allocation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 256  # bytes: what TensorRT asks of device memory, and what cudaMalloc gives


@dataclass(frozen=True)
class Tensor:
    """A tensor's dtype as NumPy calls it, its numbers' shape, and its place in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """How many bytes the tensor takes."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """Tensors by name, and how many bytes they take together."""

    tensors: Mapping[str, Tensor]
    size: int

    def views(self, memory: NDArray[np.uint8]) -> dict[str, NDArray]:
        """The tensors, as arrays over `memory` of `size` bytes."""
        return {
            name: memory[one.offset : one.offset + one.size].view(one.dtype).reshape(one.shape)
            for name, one in self.tensors.items()
        }


def place_tensors(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> Layout:
    """Names, dtypes and shapes to places, one after another. A tensor without elements has a place of its own too:
    TensorRT wants an address for each.
    """
    placed: dict[str, Tensor] = {}
    end = 0
    for name, dtype, shape in tensors:
        placed[name] = one = Tensor(dtype, tuple(shape), end)
        end += max(aligned(one.size), ALIGNMENT)
    return Layout(placed, end)


def aligned(size: int) -> int:
    """Round up to the next multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT
