"""The places of all tensors of a binding in one allocation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.tensors import Arrays, Shape

ALIGNMENT = 256  # bytes: TensorRT asks for it, and cudaMalloc gives it


@dataclass(frozen=True)
class Tensor:
    """A tensor's NumPy dtype, its shape, and its place."""

    dtype: str
    shape: Shape
    offset: int  # bytes

    @property
    def size(self) -> int:
        """Return the bytes that the tensor takes."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """Tensors by name, and the bytes that they take together."""

    tensors: Mapping[str, Tensor]
    size: int

    def views(self, memory: NDArray[np.uint8]) -> Arrays:
        """Return the tensors as arrays that share `memory`, (size,), uint8."""
        return {
            name: memory[tensor.offset : tensor.offset + tensor.size].view(tensor.dtype).reshape(tensor.shape)
            for name, tensor in self.tensors.items()
        }


def place_tensors(tensors: Iterable[tuple[str, str, Shape]]) -> Layout:
    """Place tensors one after another.

    A tensor without elements has a place of its own too: TensorRT wants an address for each.

    Args:
        tensors: Name, dtype and shape of each.
    """
    placed: dict[str, Tensor] = {}
    end = 0
    for name, dtype, shape in tensors:
        placed[name] = tensor = Tensor(dtype, tuple(shape), end)
        end += max(aligned(tensor.size), ALIGNMENT)
    return Layout(placed, end)


def aligned(size: int) -> int:
    """Round up to the next multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT
