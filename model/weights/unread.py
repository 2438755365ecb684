"""Weights that wait until they are read: zeros without memory stand for them, so that one at a time is in memory."""

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .mapping import is_mapped, release

SMALL = 65536  # bytes: smaller weights are never left unread, as a graph's optimiser may read them
KEPT = 1 << 26  # bytes that are read until the C library is told to give free memory back
_LEAVING: ContextVar[bool] = ContextVar("leaving", default=False)


class _Zeros(mmap.mmap):
    """Holds pages that take no memory until something is written to them, and what reads the weight in their place."""

    reader: Callable[[], Tensor]
    stored: Tensor | None  # where that only casts it


_UNREAD: WeakValueDictionary[int, _Zeros] = WeakValueDictionary()  # by address
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
_READ = 0  # bytes since memory was given back


@contextlib.contextmanager
def leave_unread() -> Iterator[None]:
    """While the context lasts, weights that would need memory of their own stay unread when networks are loaded.

    These are the ones that are computed from what their file holds: converted from float8, multiplied by a scale,
    turned, or merged with a LoRA. Each network keeps the dtypes of its file, which may be several. It has the right
    shapes and dtypes and can be traced, but computes nothing: only `numbers` and `read_alone` know its weights.
    """
    token = _LEAVING.set(True)
    try:
        yield
    finally:
        _LEAVING.reset(token)


def leaving() -> bool:
    """Tell whether weights are left unread at present."""
    return _LEAVING.get()


def unread(value: Tensor, read: Callable[[], Tensor]) -> Tensor:
    """Return what a network holds for a weight: its value, or zeros that stand for it while weights are left unread.

    Args:
        value: The weight, as `read` returns it. One that is small or lies in a mapped file is returned as it is.
        read: Returns the weight again whenever its numbers are asked for.
    """
    if not leaving() or value.nbytes <= SMALL or is_mapped(value):
        return value
    _give_back(value.nbytes)
    return _standing_for(value, value.dtype, read)


def cast_later(weight: Tensor, dtype: torch.dtype) -> None:
    """Give a weight a dtype: when it is read, if it is large and takes no memory until then, else at once.

    Of several casts that wait only the last is done.
    """
    zeros = _zeros_of(weight)
    stored = weight.detach() if zeros is None or zeros.stored is None else zeros.stored
    waits = zeros is not None or (is_mapped(stored) and stored.is_contiguous())
    if waits and stored.numel() * dtype.itemsize > SMALL:
        weight.data = _standing_for(stored, dtype, partial(_cast, stored, dtype), stored)
    else:
        weight.data = _cast(stored, dtype)


def is_unread(weight: Tensor) -> bool:
    """Tell whether a tensor stands for an unread weight."""
    return _zeros_of(weight) is not None


def numbers(weight: Tensor) -> Tensor:
    """Return the numbers of a weight, or of a view of all of one such as its transpose.

    They are in memory of their own where the weight was left unread; else they are the weight's, in a file perhaps.
    """
    zeros = _zeros_of(weight)
    if zeros is None:
        return weight.detach()
    _give_back(len(zeros))
    value = zeros.reader().contiguous()
    return value if value.stride() == weight.stride() else value.as_strided(weight.shape, weight.stride())


def read_alone(weight: Tensor) -> Tensor:
    """Return the `numbers` of a weight, which are copied into memory of their own where they lie in a file."""
    value = numbers(weight)
    if not is_mapped(value):
        return value
    copied = value.clone()
    release(value)
    return copied


def _zeros_of(weight: Tensor) -> _Zeros | None:
    """Return the zeros that a tensor is a view of, where it stands for an unread weight."""
    zeros = _UNREAD.get(weight.untyped_storage().data_ptr())
    assert zeros is None or len(zeros) == weight.nbytes, "a view of a part"
    return zeros


def _give_back(read: int) -> None:
    """Give free memory back to the system when enough has been read since the last time.

    The C library of GNU keeps pieces below 32 MB for itself. Of weights that are read one after the other, each of
    another size, it would keep as much as all of them take.
    """
    global _READ
    _READ += read
    if _READ > KEPT and _TRIM is not None:
        _TRIM(0)
        _READ = 0


def _cast(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a stored weight's numbers in a dtype, and leave nothing of its file in memory."""
    value = numbers(stored).to(dtype)
    release(stored)
    return value


def _standing_for(like: Tensor, dtype: torch.dtype, read: Callable[[], Tensor], stored: Tensor | None = None) -> Tensor:
    """Return zeros of a tensor's shape that stand for what `read` returns, which may be a cast of what is stored."""
    zeros = _Zeros(-1, like.numel() * dtype.itemsize, access=mmap.ACCESS_COPY)
    zeros.reader, zeros.stored = read, stored
    tensor = torch.frombuffer(zeros, dtype=dtype, count=like.numel()).reshape(like.shape)
    _UNREAD[tensor.data_ptr()] = zeros
    return tensor
