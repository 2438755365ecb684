"""Read and write latents as .npy files."""

from pathlib import Path

import numpy as np

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.reading import plain_file
from ldmrt.runtime.files.writing import write_atomically
from ldmrt.runtime.tensors import Array


def read_latents(path: Path | None) -> Array | None:
    """Read the latents in an .npy file, without unpickling anything; None without a file."""
    if path is None:
        return None
    try:
        return np.asarray(np.lib.format.open_memmap(plain_file("generate", path), mode="r"))
    except (OSError, ValueError) as error:
        found = first_line(error)
        raise LdmrtError("generate", f"cannot read {path}", expected="an .npy file", found=found) from None


def save_array(path: Path, array: Array) -> Path:
    """Write an array as .npy and return the path."""
    with write_atomically(path) as file:
        np.save(file, array)
    return path
