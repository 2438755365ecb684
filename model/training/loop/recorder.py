"""Record the memory of tensors while a step is computed."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ldmrt.model.training.data.captioned import Sample
from ldmrt.model.training.draws import Draws

from .task import Losses

LossOf = Callable[[list[Sample], Draws], Losses]
CONVOLUTION = torch.ops.aten.convolution_backward.default


class Recorder(TorchDispatchMode):
    """Records the bytes of tensors that are alive after each operation, of those that were made since it began.

    On a GPU these are the allocator's, at the operation's peak. On the CPU they are of the storages that operations
    return, until they are freed; of what kernels allocate for themselves only `copies` are counted.

    Attributes:
        segments: The bytes, in segments: a new one begins before and after each `loss_of`.
        activations: The bytes that each `loss_of` left for the gradient.
    """

    def __init__(self, device: str) -> None:
        """Watch a device, cpu or cuda."""
        super().__init__()
        self.gpu = device == "cuda"
        self.segments: list[list[int]] = [[]]
        self.activations: list[int] = []
        self._alive = 0
        self._storages = dict[int, Any]()  # weak references to those that have been seen, by address
        self._before = torch.cuda.memory_allocated() if self.gpu else 0

    @property
    def alive(self) -> int:
        """The living bytes."""
        return torch.cuda.memory_allocated() - self._before if self.gpu else self._alive

    def marking(self, loss_of: LossOf) -> LossOf:
        """Return a task's `loss_of` that divides what is recorded into segments."""

        def marked(samples: list[Sample], draws: Draws) -> Losses:
            self.segments.append([])
            before = self.alive
            losses = loss_of(samples, draws)
            self.activations.append(self.alive - before)
            self.segments.append([])
            return losses

        return marked

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and note the bytes that are alive after it."""
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
            result = func(*args, **(kwargs or {}))
            self.segments[-1].append(torch.cuda.max_memory_allocated() - self._before)
            return result
        self._see((args, kwargs), new=False)
        within = self._alive
        if func is CONVOLUTION and args[1].dim() == 4:
            gradient, x, weight, *_, mask = args
            within += copies(gradient, x, weight, mask)
        result = func(*args, **(kwargs or {}))
        self._see(result, new=True)
        self.segments[-1].append(max(within, self._alive))
        return result

    def _see(self, values: object, *, new: bool) -> None:
        """Count the storages of tensors that are new; others that have not been seen were there before."""
        for value in tree_iter(values):
            if not isinstance(value, Tensor):
                continue
            storage = value.untyped_storage()
            if (address := storage._cdata) not in self._storages:
                size = storage.nbytes() if new else 0
                self._alive += size
                self._storages[address] = weakref.ref(storage, self._freed(address, size))

    def _freed(self, address: int, size: int) -> Callable[[object], None]:
        """Return what is called when a storage is freed."""

        def freed(_: object) -> None:
            del self._storages[address]
            self._alive -= size

        return freed


def copies(gradient: Tensor, x: Tensor, weight: Tensor, mask: Sequence[bool]) -> int:
    """Return the bytes that the gradients of a convolution take at their peak on the CPU, with the copies of them.

    oneDNN computes in layouts of its own: the gradient of a weight is there three times before it is once, and so is
    that of the input where neither has the layout channels_last. Of tensors that do not have it there are copies, and
    one of the weight while the gradient of the input is computed.

    Args:
        gradient: Of the output.
        x: The input.
        weight: The weight.
        mask: Whether the gradients of the input, the weight and the bias are computed.
    """
    of_x, of_weight = x.nbytes * mask[0], weight.nbytes * mask[1]
    plain = [one for one in (x, weight) if not one.is_contiguous(memory_format=torch.channels_last)]
    if len(plain) < 2:
        return of_x + max(weight.nbytes * mask[0], 3 * of_weight) + sum(one.nbytes for one in plain)
    first, second = (gradient.nbytes + weight.nbytes) * mask[0], (gradient.nbytes + x.nbytes + 2 * of_weight) * mask[1]
    return of_x + max(2 * of_x, first, second)
