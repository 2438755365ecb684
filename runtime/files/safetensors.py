"""Read safetensors files in NumPy, without the package: a header in JSON, and then the numbers.

https://github.com/huggingface/safetensors describes the format.
"""

import hashlib
import math
from pathlib import Path

import numpy as np

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.tensors import Array, whole

from .reading import JsonObject, parse_json, plain_file

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
HEADER_BYTES = 100 << 20  # the most that the format allows
EXPECTED = "a whole safetensors file"


def read_safetensors(where: str, path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Read the tensors of a safetensors file, and its metadata.

    Args:
        where: What an error concerns.
        path: The file.

    Returns:
        The tensors by name, copied, so that a file which changes later changes none; bfloat16, which NumPy lacks, as
        float32. And the metadata.

    Raises:
        LdmrtError: The file is missing, damaged, or holds numbers of an unknown kind.
    """
    size = plain_file(where, path).stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_BYTES):
            raise _unreadable(where, path, "no header of safetensors, or a file that was cut off")
        header = parse_json(where, f"the header of {path}", file.read(length))
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise _unreadable(where, path, "metadata that is no JSON object")
    if any(not isinstance(row, dict) for row in header.values()):
        raise _unreadable(where, path, "a tensor that is no JSON object")
    begin = 8 + length
    data = np.memmap(path, np.uint8, "r", offset=begin) if size > begin else np.empty(0, np.uint8)
    tensors = dict[str, Array]()
    left = len(data)  # of tensors that lie over one another, each would be read into memory of its own
    for name, row in header.items():
        tensors[name], size = _tensor(where, path, name, row, data)
        if (left := left - size) < 0:
            raise _unreadable(where, path, "tensors that lie over one another")
    return tensors, {str(key): str(value) for key, value in metadata.items()}


def content_sha256(path: Path) -> str:
    """Compute the hexadecimal SHA-256 of a file without its header, which trainers change afterwards."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(int.from_bytes(file.read(8), "little"), 1)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _tensor(where: str, path: Path, name: str, row: JsonObject, data: Array) -> tuple[Array, int]:
    """Return a tensor of the file's data, as its row in the header describes it, and its bytes in the file."""
    kind = row.get("dtype")
    if not isinstance(kind, str) or kind not in DTYPES:
        problem = f"{name:.200} in {path} is of an unsupported dtype"
        raise LdmrtError(where, problem, expected=", ".join(DTYPES), found=f"{kind!r:.40}")
    try:
        shape = tuple(whole(side) for side in row["shape"])
        first, last = (whole(place) for place in row["data_offsets"])
        dtype = np.dtype(DTYPES[kind])
        if last > len(data) or last - first != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name:.200} is not whole")
        numbers: Array = np.frombuffer(data[first:last].tobytes(), dtype).reshape(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(where, path, str(error)[:200]) from None
    return (widened(numbers) if kind == "BF16" else numbers), last - first


def widened(bits: Array) -> Array:
    """Return bfloat16 numbers, given by their bits, as float32."""
    numbers: Array = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return numbers


def _unreadable(where: str, path: Path, found: str) -> LdmrtError:
    """Make the error of a file that is damaged, or none of safetensors."""
    return LdmrtError(where, f"cannot read {path}", expected=EXPECTED, found=found)
