"""Casts of weights that wait until the weights are read, so that only one cast weight is in memory at a time."""

import mmap

import torch
from torch import Tensor

from .mapping import is_mapped, release

SMALL = 65536  # bytes: smaller weights are cast at once, as a graph's optimiser may read them


class LateCasts:
    """Gives weights other dtypes, and reads their numbers from the file that they lie in when they are needed.

    A network whose weights were cast so has the shapes and dtypes of one that was cast at once, and can be traced, but
    computes nothing: its weights are zeros that take no memory, and only `read` knows their numbers.
    """

    def __init__(self) -> None:
        """Begin without casts."""
        self._held: dict[int, tuple[Tensor, Tensor]] = {}  # by address: zeros, and the weight that they stand for

    def cast(self, weight: Tensor, dtype: torch.dtype) -> None:
        """Give a weight a dtype, later if it is large and lies in a mapped file, else at once."""
        stored = self._stored(weight)
        if stored.numel() * dtype.itemsize > SMALL and is_mapped(stored) and stored.is_contiguous():
            weight.data = _zeros(stored, dtype)
            self._held[weight.data_ptr()] = weight.data, stored
        else:
            weight.data = stored.to(dtype)

    def read(self, weight: Tensor) -> Tensor:
        """Return the numbers of a weight, or of a view of all of one such as its transpose.

        They are in memory of their own where they lie in a file or are cast; else they are the weight's.
        """
        stored = self._stored(weight)
        value = stored.to(weight.dtype)
        if is_mapped(value):
            value = value.clone()
        release(stored)
        return value.as_strided(weight.shape, weight.stride()) if value.stride() != weight.stride() else value

    def _stored(self, weight: Tensor) -> Tensor:
        """Return the numbers that a weight or a view stands for, or its own."""
        if weight.data_ptr() not in self._held:
            return weight.detach()
        zeros, stored = self._held[weight.data_ptr()]
        assert (zeros.dtype, zeros.numel()) == (weight.dtype, weight.numel()), "a view of a part"
        return stored


def _zeros(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return zeros of a tensor's shape in pages of their own, which take no memory until something is written."""
    content = mmap.mmap(-1, max(1, like.numel() * dtype.itemsize), access=mmap.ACCESS_COPY)
    return torch.frombuffer(content, dtype=dtype, count=like.numel()).reshape(like.shape)
