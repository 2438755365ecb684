"""A NumPy archive read with care: nothing is allocated that the file does not hold, and nothing is unpickled."""

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

LARGEST = 1 << 30  # bytes of all arrays
MOST = 10_000  # arrays
KINDS = "fiubU"  # floats, whole numbers, truth values and texts


def read_archive(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of an .npz file, by name.

    Raises:
        ValueError: The file is damaged, holds anything but finite numbers and texts, or more than `LARGEST` bytes.
        OSError: It cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
            if len(members) > MOST or sum(member.file_size for member in members) > LARGEST:
                raise ValueError(f"more than {MOST} arrays, or more than {LARGEST >> 20} MB")
            return {member.filename.removesuffix(".npy"): _read(file, member) for member in members}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, MemoryError, zlib.error) as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _read(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[np.generic]:
    """Read one array, after its header has been compared with its size."""
    with file.open(member) as stream:
        shape, order, dtype = _header(stream)
        count = math.prod(shape)
        if dtype.hasobject or dtype.kind not in KINDS or not dtype.itemsize or any(side < 0 for side in shape):
            raise ValueError(f"{member.filename} is of the unsupported dtype {dtype}")
        if stream.tell() + count * dtype.itemsize != member.file_size:
            raise ValueError(f"{member.filename} does not have the size that it declares")
        content = stream.read(member.file_size)
    array = np.frombuffer(content, dtype, count)
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{member.filename} is not finite")
    shaped: NDArray[np.generic] = array.reshape(shape, order="F" if order else "C").copy()
    return shaped


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Read the header of an array: its shape, whether the first axis runs fastest, and its dtype."""
    version = npy.read_magic(stream)
    if version == (1, 0):
        return npy.read_array_header_1_0(stream)
    if version == (2, 0):
        return npy.read_array_header_2_0(stream)
    raise ValueError(f"unsupported version {version} of NumPy's format")
