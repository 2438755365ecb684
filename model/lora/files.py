"""Read LoRA files on disk with PyTorch: safetensors and pickles, of every dtype."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldmrt.model.weights.pickled import lazy_tensor, unwrapped
from ldmrt.model.weights.tensor_files import read
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.lora.files import LONGEST
from ldmrt.runtime.files.lora.reading import USUAL
from ldmrt.runtime.files.reading import find_file
from ldmrt.runtime.tensors import Array

USUAL_PICKLES = ("pytorch_lora_weights.bin", "adapter_model.bin")
LARGEST = 1e300  # Python's own whole numbers have no end


def read_tensors(path: Path) -> tuple[Path, dict[str, Tensor], dict[str, str]]:
    """Read a file, or the one of a usual name in a folder.

    Returns:
        The file's path, its tensors, and its metadata.

    Raises:
        LdmrtError: The file is missing, damaged, or holds something else than named tensors.
    """
    path = find_file("lora", path, (*USUAL, *USUAL_PICKLES))
    content, metadata = read("lora", path)
    return path, _tensors(path, content), metadata


def to_numpy(tensor: Tensor) -> Array:
    """Return a tensor as an array; formats that NumPy lacks become float32."""
    known = tensor.dtype in (torch.float16, torch.float32, torch.float64) or not tensor.is_floating_point()
    array: Array = (tensor if known else tensor.float()).numpy()
    return array


def _tensors(path: Path, content: object) -> dict[str, Tensor]:
    """Return the tensors of a state dict, which may lie in another's "state_dict"; numbers become tensors."""
    content, _ = unwrapped("lora", content, path)
    if not isinstance(content, Mapping):
        raise LdmrtError("lora", f"{path} holds no LoRA", expected="named tensors", found=type(content).__name__)
    tensors = {}
    for key, value in content.items():
        if isinstance(value, (int, float)) and abs(value) < LARGEST:
            value = torch.tensor(float(value))  # an alpha
        if not isinstance(key, str) or not isinstance(value, Tensor):
            kind, name = type(value).__name__, repr(key)[:LONGEST]
            raise LdmrtError("lora", f"{name} in {path} is not a tensor", expected="named tensors", found=kind)
        lazy_tensor("lora", key[:LONGEST], value, path)
        tensors[key] = value.detach()
    return tensors
