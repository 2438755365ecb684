"""Divide the batches of a training among several processes, and bring together what each of them computes.

Of a batch, process r of n computes the samples at places i with i mod n = r. The gradients are added up once a step, in
pieces that are always the same, so that a resumed run adds up in the same order; PyTorch's `DistributedDataParallel`
chooses its pieces anew after the first step, and needs a sample in every process. accelerate opens the connections.
"""

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.optional import check_installed

PIECE = 1 << 25  # bytes of gradients that are added up at once, about as many as DistributedDataParallel's
PATIENCE = timedelta(hours=2)  # for the others, while the first process saves, draws previews and validates
UNSUPPORTED = {"FSDP": "FSDP", "DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM"}  # ACCELERATE_USE_...
T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """Tells the other processes the error that ends one of them."""

    error: Exception


class Processes:
    """Knows which of a training's processes this one is; alone, it has nothing to exchange and changes nothing.

    All processes call the same operations in the same order. An error of one is raised in all of them.
    """

    def __init__(self, rank: int = 0, count: int = 1, group: Any = None) -> None:
        """Be process `rank` of `count`, which exchange values through a group of CPU connections."""
        self.rank, self.count, self.group = rank, count, group
        self.over = False  # an error has been told, or another process is gone

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this is the process that has the average, saves, logs and shows."""
        return self.rank == 0

    def exchange(self, value: T) -> list[T]:
        """Send a value to all processes; return those of all, in their order.

        Raises:
            LdmrtError: Another process is gone, or told such an error.
        """
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.count
        with self._connected():
            dist.all_gather_object(found, value, group=self.group)
        for one in found:
            if isinstance(one, Failure):
                self.over = True
                raise one.error
        return found

    def once(self, make: Callable[[], T]) -> T:
        """Return what the first process makes; the others only receive it."""
        made = [make() if self.first else None]
        self.exchange(None)  # where an error of the first one is raised in the others
        if not self.alone:
            with self._connected():
                dist.broadcast_object_list(made, src=0, group=self.group)
        return made[0]  # type: ignore[return-value]

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Turn the error of a lost connection into an `LdmrtError`."""
        try:
            yield
        except RuntimeError:
            self.over = True
            hint = "--resume continues from the saved state"
            raise LdmrtError("train", "another process of this training has ended", hint=hint) from None

    def largest(self, *numbers: int) -> tuple[int, ...]:
        """Return the largest of each number among all processes."""
        return tuple(map(max, *self.exchange(numbers))) if not self.alone else numbers

    def check_equal(self, name: str, value: object) -> None:
        """Refuse values that differ between the processes.

        Raises:
            LdmrtError: They differ; it shows them in the order of the processes.
        """
        if len(set(found := self.exchange(value))) > 1:
            hint = "a folder that all machines share, for --out and --data"
            problem, shown = f"the processes differ in their {name}", ", ".join(map(str, found))
            raise LdmrtError("train", problem, expected="one value", found=shown, hint=hint)

    def share(self, part: slice) -> slice:
        """Return where in this process's samples of a batch those of a part of the batch are."""
        first, last = (max(0, -(-(place - self.rank) // self.count)) for place in (part.start, part.stop))
        return slice(first, last)

    def all_of(self, values: Sequence[T]) -> list[T]:
        """Return the values of all samples of a batch, of those of this process's own."""
        shares = self.exchange(values)
        return [shares[i % self.count][i // self.count] for i in range(sum(map(len, shares)))]

    def joined(self, values: Tensor | None) -> Tensor:
        """Return the values of all samples of a batch, (B, ...), of this process's own; on the CPU if not alone.

        Args:
            values: Those of the process's samples, (b, ...); None where it has none.
        """
        return values if self.alone and values is not None else self._in_order(self.exchange(_on_cpu(values)))

    def _in_order(self, shares: Sequence[Tensor | None]) -> Tensor:
        """Bring the values of each process's samples into the order of the batch."""
        some = [share for share in shares if share is not None and len(share)]
        whole = some[0].new_empty((sum(map(len, some)), *some[0].shape[1:]))
        for rank, share in enumerate(shares):
            if share is not None and len(share):
                whole[rank :: self.count] = share
        return whole

    def mean(self, value: Tensor, count: int) -> Tensor:
        """Return the mean of all processes' values, that of each weighted by its `count` of samples.

        Only processes that have samples call it; the others `serve_means`.
        """
        if self.alone:
            return value
        found = [one for one in self.exchange((_on_cpu(value), count)) if one is not None]
        total = sum(weight for _, weight in found)
        return sum(one * (weight / total) for one, weight in found).to(value.device)

    def serve_means(self) -> None:
        """Take part in the means that other processes ask for, until none of them has a sample left."""
        while not self.alone and any(one is not None for one in self.exchange(None)):
            pass

    def bring_together(
        self,
        modules: Sequence[nn.Module],
        losses: Mapping[str, Tensor],
        noted: Mapping[str, Tensor],
        skipped: MutableMapping[Any, str],
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Add up the gradients of a step, and return the losses and notes of all samples of its batch.

        A weight that no process has a gradient of stays without one, as in a single process.

        Args:
            modules: Have the weights and gradients, which change in place.
            losses: Of the process's own samples, by name; empty where it has none.
            noted: As well.
            skipped: Unreadable images, to which those of the other processes are added.
        """
        if self.alone:
            return losses, noted
        weights = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
        found = self.exchange((
            {name: _on_cpu(value) for name, value in losses.items()},
            {name: _on_cpu(value) for name, value in noted.items()},
            bytes(weight.grad is not None for weight in weights),
            dict(skipped),
        ))  # fmt: skip
        for _, _, _, others in found:
            skipped.update({key: reason for key, reason in others.items() if key not in skipped})
        for weight, *known in zip(weights, *(one[2] for one in found), strict=True):
            if any(known) and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        self.add_up([weight.grad for weight in weights if weight.grad is not None])
        return self._complete([one[0] for one in found]), self._complete([one[1] for one in found])

    def _complete(self, shares: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Bring the named values of each process's samples into the order of the batch."""
        return {name: self._in_order([share.get(name) for share in shares]) for name in shares[0]}

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes, whose bits are the same in each."""
        if self.alone:
            return
        piece, size = list[Tensor](), 0
        for number, tensor in enumerate(tensors, 1):
            piece.append(tensor)
            size += tensor.nbytes
            if size >= PIECE or number == len(tensors):
                flat = torch.cat([one.reshape(-1) for one in piece])
                with self._connected():
                    dist.all_reduce(flat)
                for one, total in zip(piece, flat.split([one.numel() for one in piece]), strict=True):
                    one.copy_(total.view(one.shape))
                piece, size = [], 0

    @contextlib.contextmanager
    def sharing_errors(self) -> Iterator[None]:
        """Tell the other processes an error that is raised within, and leave them at the end."""
        try:
            yield
        except Exception as error:
            if not self.alone and not self.over:
                shown = error if isinstance(error, LdmrtError) else _with_traceback(error, self.rank)
                with contextlib.suppress(Exception):  # the others may be gone, or have an error of their own
                    self.exchange(Failure(shown))
                self.over = True
            raise
        finally:
            self._leave()

    def _leave(self) -> None:
        """Close the connections; the first process does it first, so that a launcher hears of its end before."""
        if self.alone:
            return
        with contextlib.suppress(Exception):
            if not self.first:
                self.exchange(None)
        dist.destroy_process_group()


ALONE = Processes()


def _on_cpu(value: Any) -> Any:
    return None if value is None else value.detach().cpu()


def _with_traceback(error: Exception, rank: int) -> RuntimeError:
    lines = "".join(traceback.format_exception(error))
    return RuntimeError(f"in process {rank}:\n{lines}")


def join(device: str) -> Processes:
    """Join the other processes that accelerate's launcher has started beside this one: gloo on the CPU, NCCL on GPUs.

    Raises:
        LdmrtError: accelerate is missing or shards the model, or there are fewer GPUs than processes.
    """
    check_installed("train", "accelerate")
    for name, title in UNSUPPORTED.items():
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true", "yes"):
            expected = "a whole model in each process (--multi_gpu)"
            raise LdmrtError("train", f"{title} is not supported", expected=expected, hint="another accelerate config")
    if device == "cuda":
        check_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    from accelerate.state import PartialState

    state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    group = None if device == "cpu" else dist.new_group(backend="gloo", timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes, group)


def check_gpus(count: int) -> None:
    """Refuse more processes than this machine has GPUs."""
    if not torch.cuda.is_available():
        raise LdmrtError("train", "this PyTorch sees no CUDA device", hint="--device cpu")
    if torch.cuda.device_count() < count:
        found = torch.cuda.device_count()
        expected = "one GPU for each process"
        raise LdmrtError("train", f"{count} processes on {found} GPUs", expected=expected, hint=f"--processes {found}")
