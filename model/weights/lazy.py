"""Describe tensors of a file that are known by shape and read one at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .mapping import is_mapped


@dataclass(frozen=True)
class Lazy:
    """Describes a tensor in a file by its shape and reads it when needed. `dtype` is None where it is no float."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    view: Callable[[], Tensor] = field(repr=False)  # a mapping of the file, without a copy where that is possible
    done: Callable[[], None] = field(default=lambda: None, repr=False)  # called when the view is needed no more

    def read(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the tensor: a view of the file as it is stored, or a copy in another dtype."""
        view = self.view()
        value = (view if dtype is None else view.to(dtype)).contiguous()
        if not is_mapped(value):
            self.done()
        return value

    def transposed(self) -> "Lazy":
        """Describe the transpose of a matrix."""
        return replace(self, shape=self.shape[::-1], view=lambda: self.view().T)

    def matrix(self) -> "Lazy":
        """Describe a 1x1 convolution, (out, in, 1, 1), as a matrix (out, in); anything else stays as it is."""
        shape = self.shape[:2] if set(self.shape[2:]) <= {1} else self.shape
        return replace(self, shape=shape, view=lambda: self.view().reshape(shape))

    def part(self, index: int, count: int, length: int = 1) -> "Lazy":
        """Describe one of `count` tensors that are stacked along the first axis, or `length` of them as one."""
        rows, rest = divmod(self.shape[0] if self.shape else 1, count)
        if rest:
            return self  # its shape then does not fit, which `match` reports
        shape = (length * rows, *self.shape[1:])
        return replace(self, shape=shape, view=lambda: self.view()[index * rows : (index + length) * rows])

    def swapped(self) -> "Lazy":
        """Describe the tensor with the halves of its first axis in the other order."""
        if not self.shape or self.shape[0] % 2:
            return self  # its shape then does not fit, which `match` reports
        return replace(self, view=lambda: torch.cat(self.view().chunk(2)[::-1]))


Place = tuple[str, Callable[[Lazy], Lazy]]  # a tensor's name in a file, and what makes it a network's


def as_it_is(tensor: Lazy) -> Lazy:
    """Return the tensor unchanged."""
    return tensor
