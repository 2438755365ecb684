"""Tensors of a file that are known by shape and read one at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lazy:
    """A tensor in a file, known by its shape and read when it is asked for. `dtype` is None where it is no float."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    view: Callable[[], Tensor] = field(repr=False)  # a mapping of the file, without a copy where that is possible
    done: Callable[[], None] = field(default=lambda: None, repr=False)  # nobody needs the view any more

    def read(self, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor: a view of the file as it is stored, a copy where it is asked for in another dtype."""
        view = self.view()
        value = (view if dtype is None else view.to(dtype)).contiguous()
        if value.data_ptr() != view.data_ptr():
            self.done()
        return value

    def transposed(self) -> "Lazy":
        """A matrix on its side."""
        return replace(self, shape=self.shape[::-1], view=lambda: self.view().T)

    def matrix(self) -> "Lazy":
        """A convolution of one pixel as the matrix that it is."""
        shape = self.shape[:2] if set(self.shape[2:]) <= {1} else self.shape
        return replace(self, shape=shape, view=lambda: self.view().reshape(shape))

    def part(self, index: int, count: int) -> "Lazy":
        """One of `count` tensors that are stored on top of one another."""
        rows, rest = divmod(self.shape[0] if self.shape else 1, count)
        if rest:
            return self  # of no shape that fits, which is then said
        shape = (rows, *self.shape[1:])
        return replace(self, shape=shape, view=lambda: self.view()[index * rows : (index + 1) * rows])


Place = tuple[str, Callable[[Lazy], Lazy]]  # a tensor's name in a file, and what makes it a network's


def as_it_is(tensor: Lazy) -> Lazy:
    """Return the tensor unchanged."""
    return tensor
