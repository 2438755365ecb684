"""Files mapped into memory, whose pages are taken out of it when they are needed no more."""

import mmap
from pathlib import Path
from typing import IO
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

PAGES = Path("/proc/self/pagemap")  # 64 bits for each page of this process, of Linux
FILE, SWAPPED, PRESENT = (np.uint64(1 << bit) for bit in (61, 62, 63))
_PLACES: WeakKeyDictionary[mmap.mmap, tuple[int, int]] = WeakKeyDictionary()  # addresses of begin and end


def map_file(file: IO[bytes]) -> mmap.mmap:
    """Map a whole file into memory; what is written to the mapping stays in memory."""
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    begin = torch.frombuffer(content, dtype=torch.uint8).data_ptr()
    _PLACES[content] = begin, begin + len(content)
    return content


def forget(content: mmap.mmap, begin: int, end: int) -> None:
    """Take the whole pages between two bytes of a mapping out of memory; what was written to them is lost."""
    first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last and hasattr(mmap, "MADV_DONTNEED"):
        content.madvise(mmap.MADV_DONTNEED, first, last - first)


def is_mapped(tensor: Tensor) -> bool:
    """Tell whether a tensor lies in a mapped file, so that it need not be in memory."""
    return _mapping(tensor) is not None


def release(tensor: Tensor) -> None:
    """Take a tensor that lies in a mapped file out of memory; it is read again when it is needed.

    Nothing is lost: a tensor into which anything was written stays, and so does one where that cannot be told.
    """
    if (found := _mapping(tensor)) is not None and _is_dense(tensor):
        content, start = found
        begin = tensor.data_ptr()
        if _unchanged(begin, begin + tensor.nbytes):
            forget(content, begin - start, begin - start + tensor.nbytes)


def _mapping(tensor: Tensor) -> tuple[mmap.mmap, int] | None:
    """Return the mapping that a tensor lies in, and the address where that begins."""
    address = tensor.data_ptr()
    return next(((content, begin) for content, (begin, end) in _PLACES.items() if begin <= address < end), None)


def _is_dense(tensor: Tensor) -> bool:
    """Tell whether a tensor's numbers lie side by side, in any order."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.numel() == last + 1


def _unchanged(begin: int, end: int) -> bool:
    """Tell whether the pages between two addresses of a private mapping are still those of the file."""
    first, last = begin // mmap.PAGESIZE, -(-end // mmap.PAGESIZE)
    try:
        with PAGES.open("rb") as file:
            file.seek(8 * first)
            pages = np.frombuffer(file.read(8 * (last - first)), np.uint64)
    except OSError:  # of a system that does not tell
        return False
    copied = ((pages & PRESENT) != 0) & ((pages & FILE) == 0) | ((pages & SWAPPED) != 0)
    return len(pages) == last - first and not copied.any()
