"""A checkpoint that computes in float32 with the weights of one module in memory at a time."""

import contextlib
from collections.abc import Iterator

import torch

from ldmrt.export.components.component import Component
from ldmrt.export.components.table import rows
from ldmrt.model.checkpoint.checkpoint import Checkpoint

from .casting import computing


@contextlib.contextmanager
def streamed(checkpoint: Checkpoint) -> Iterator[dict[str, Component]]:
    """Yield the components of a checkpoint, by name, which compute in float32 while the context lasts.

    The numbers are those of the same checkpoint loaded in float32. Each module's weights are read from their file, and
    cast, whenever it runs, and leave memory after it; weights that lie in no mapped file stay where they are, but for
    those of `leave_unread`.

    Args:
        checkpoint: Its networks are as they are stored, in any dtype.
    """
    parts = {name: part.in_float32() for name, part in rows(checkpoint).items()}
    with contextlib.ExitStack() as stack:
        for part in parts.values():
            stack.enter_context(computing(part.module, [("", torch.float32)]))
        yield parts
